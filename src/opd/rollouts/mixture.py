"""Rollouts of two origins."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from opd.types import Prompt, Rollout, RolloutSource


class Mixture:
    """The student writes a batch, or another does: always at first, then by the flip of a coin.

    Args:
        student: on-policy rollouts.
        other: rollouts by the teacher, or the prompts' reference answers.
        share: chance of the other, in [0, 1).
        first: steps that are all the other's.

    Source: GKD, arXiv 2306.13649, whose λ is 1 − share; off-policy first, Qwen3, arXiv 2505.09388.
    """

    def __init__(self, student: RolloutSource, other: RolloutSource, *, share: float, first: int = 0) -> None:
        self.student = student
        self.other = other
        self.share = share
        self.first = first

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> Sequence[Rollout]:
        """The whole batch from one of the two; the same seed falls on the same side."""
        coin = torch.rand((), generator=torch.Generator().manual_seed(seed)).item()
        others = step < self.first or coin < self.share
        return (self.other if others else self.student).rollout(prompts, seed, step)
