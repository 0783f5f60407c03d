"""Supervised training: the rollout's own tokens are the targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from opd.axes.context import RunContext
from opd.axes.signals.base import SignalConfig

if TYPE_CHECKING:
    from opd.types import Objective, Teacher


class Sft(SignalConfig):
    """Cross entropy on rollouts that a teacher or the reference answers provide."""

    type: Literal["sft"] = "sft"

    reads_teacher = False
    mixable = True
    without_teacher = "Supervised training: the target is the rollout's own token."
    reads_any_time = False

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Rollouts of others, and no view."""
        return {"": ("others' rollouts", "plain view")}

    def words(self) -> str:
        """The signal's cell in the map."""
        return "the rollout's tokens"

    def distance(self, divergence: str) -> str:
        """What the loss measures."""
        return "cross entropy"

    def build(self, run: RunContext) -> tuple[Teacher, Objective]:
        """Targets read off the rollout, and cross entropy."""
        from opd.losses.objectives import CrossEntropy
        from opd.teachers.local import Answers

        loss = run.config.loss
        return Answers(), CrossEntropy(temperature=loss.temperature, chunk_tokens=loss.chunk_tokens)
