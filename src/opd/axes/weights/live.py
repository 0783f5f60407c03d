"""The student as it is at each step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from opd.axes.context import RunContext
from opd.axes.weights.base import WeightsConfig

if TYPE_CHECKING:
    from opd.models.language import LanguageModel


class Live(WeightsConfig):
    """The student itself. It collapses without an anchor; recovery needs a copy that can stop following it."""

    type: Literal["live"] = "live"

    report = "the student itself, at each step"

    def build(self, run: RunContext) -> tuple[LanguageModel, Any]:
        """The student, or a copy that follows it at once if ``guards.recover`` may roll it back."""
        if not run.config.guards.recover:
            return run.student, None
        from opd.models.copies import EmaWeights

        copy = run.frozen_copy()
        return copy, EmaWeights(copy.model, run.student.model, 0.0)
