"""A moving average of the student's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from opd.axes.context import RunContext
from opd.axes.weights.base import WeightsConfig

if TYPE_CHECKING:
    from opd.models.language import LanguageModel


class Ema(WeightsConfig):
    """An exponential moving average, updated after each step."""

    type: Literal["ema"] = "ema"
    decay: float = Field(0.99, gt=0, lt=1)
    """Share of the average that stays at each step."""

    report = "a moving average of the student"
    is_student = False

    def words(self) -> str:
        """The weights' cell in the map."""
        return "self, EMA"

    def build(self, run: RunContext) -> tuple[LanguageModel, Any]:
        """A copy, and what moves it."""
        from opd.models.copies import EmaWeights

        average = run.frozen_copy()
        return average, EmaWeights(average.model, run.student.model, self.decay)
