"""The base class of a self-teacher's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from opd.axes.base import AxisValue
from opd.axes.context import RunContext

if TYPE_CHECKING:
    from opd.models.language import LanguageModel


class WeightsConfig(AxisValue):
    """The student's own weights as a teacher; ``build`` makes the model and what keeps it up to date."""

    axis = "teacher.weights"
    fixed: ClassVar[bool] = False
    """Whether they stay what they are during the run."""
    report: ClassVar[str] = "weights of its own"
    """The teacher, for the report."""
    is_student: ClassVar[bool] = True
    """Whether the first step's teacher is the student itself, so that a plain view teaches nothing."""

    def words(self) -> str:
        """The weights' cell in the map."""
        return f"self, {self.type}"

    def build(self, run: RunContext) -> tuple[LanguageModel, Any]:
        """The model that scores, and an ``EmaWeights`` to update after each step, or None."""
        raise NotImplementedError
