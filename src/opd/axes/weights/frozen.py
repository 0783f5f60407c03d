"""The student's initial weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from opd.axes.context import RunContext
from opd.axes.weights.base import WeightsConfig

if TYPE_CHECKING:
    from opd.models.language import LanguageModel


class Frozen(WeightsConfig):
    """A copy of the student before the first step; the anchor shares it."""

    type: Literal["frozen"] = "frozen"

    report = "the student's initial weights"
    fixed = True

    def build(self, run: RunContext) -> tuple[LanguageModel, Any]:
        """The initial student."""
        return run.initial, None
