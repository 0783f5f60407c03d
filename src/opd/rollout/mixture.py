"""Rollouts of two origins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from opd.types import Prompt, Rollout


class _Roller(Protocol):
    def rollout(self, prompts: Sequence[Prompt], seed: int) -> list[Rollout]: ...


class Mixture:
    """Flips a coin for each batch: the student writes it, or another does.

    Args:
        student: on-policy rollouts.
        other: rollouts by the teacher, or the prompts' reference answers.
        share: chance of the other, in (0, 1).

    Source: GKD, arXiv 2306.13649, whose λ is 1 − share.
    """

    def __init__(self, student: _Roller, other: _Roller, *, share: float) -> None:
        self.student = student
        self.other = other
        self.share = share

    def rollout(self, prompts: Sequence[Prompt], seed: int) -> list[Rollout]:
        """The whole batch from one of the two; the same seed falls on the same side."""
        coin = torch.rand((), generator=torch.Generator().manual_seed(seed)).item()
        return (self.other if coin < self.share else self.student).rollout(prompts, seed)
