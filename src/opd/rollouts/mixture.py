"""Rollouts of two origins."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from opd.types import Prompt, Rollout, RolloutSource


class Mixture:
    """Takes each batch from the student or from another source, chosen at random after the first steps.

    Args:
        student: the source of on-policy rollouts.
        other: the teacher's rollouts, or the prompts' reference answers.
        share: probability that a batch comes from ``other``, in [0, 1).
        first: number of first steps that always take ``other``.

    Source: GKD, arXiv 2306.13649, whose λ is 1 − share; off-policy first, Qwen3, arXiv 2505.09388.
    """

    def __init__(self, student: RolloutSource, other: RolloutSource, *, share: float, first: int = 0) -> None:
        self.student = student
        self.other = other
        self.share = share
        self.first = first

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> Sequence[Rollout]:
        """The whole batch from one source; the same seed chooses the same one."""
        coin = torch.rand((), generator=torch.Generator().manual_seed(seed)).item()
        off_policy = step < self.first or coin < self.share
        return (self.other if off_policy else self.student).rollout(prompts, seed, step)
