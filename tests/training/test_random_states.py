"""Each rank gets its own random state back, and a rank that was not there keeps what it has."""

from __future__ import annotations

import pytest
import torch

from opd.training import random_states


def test_each_rank_gets_its_own_state_back() -> None:
    saved, drawn = [], []
    for rank in range(3):
        torch.manual_seed(rank)
        saved.append(random_states.of_this_rank())
        drawn.append(torch.rand(4))
    states = random_states.named(saved[:2])
    for rank in range(3):
        torch.manual_seed(2)
        random_states.put_back(states, rank)
        assert torch.equal(torch.rand(4), drawn[rank])


def test_a_file_without_a_random_state_of_torch_is_refused() -> None:
    with pytest.raises(ValueError, match="no random state of torch"):
        random_states.put_back({"torch": torch.zeros(3, dtype=torch.uint8)}, 0)
