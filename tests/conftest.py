"""Fixtures of all tests: real tiny models made on the spot, one thread, a fixed seed.

Torch is imported on first use: with several workers this file is also read by the process that starts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from opd.models.language import LanguageModel


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in ("OPD_HINT_API_KEY", "OPD_TEACHER_API_KEY", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def student() -> LanguageModel:
    from support.models import make_model

    return make_model(0)


@pytest.fixture
def teacher() -> LanguageModel:
    from support.models import make_model

    return make_model(1, layers=3, hidden=48)
