"""The λ-mixture: whole batches, by a coin that the seed decides."""

from collections.abc import Sequence

import pytest

from opd.rollouts.mixture import Mixture
from opd.types import Prompt, Rollout


class Named:
    """Says who was asked."""

    def __init__(self, name: str, asked: list[str]) -> None:
        self.name, self.asked = name, asked

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Rollout]:
        self.asked.append(self.name)
        return []


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_share_of_batches_and_the_same_seed_the_same_side(share: float) -> None:
    asked: list[str] = []
    mixture = Mixture(Named("student", asked), Named("other", asked), share=share)
    for seed in [*range(2000), *range(2000)]:
        mixture.rollout([], seed)
    assert asked[:2000] == asked[2000:]
    assert asked[:2000].count("other") / 2000 == pytest.approx(share, abs=0.04)


def test_the_first_steps_are_the_others() -> None:
    asked: list[str] = []
    mixture = Mixture(Named("student", asked), Named("other", asked), share=0.0, first=3)
    for step in range(6):
        mixture.rollout([], step, step)
    assert asked == ["other"] * 3 + ["student"] * 3
