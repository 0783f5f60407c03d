"""The teacher writes the completions: off-policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from opd.axes.context import RunContext
from opd.axes.rollouts.base import SourceConfig

if TYPE_CHECKING:
    from opd.types import RolloutSource


class Teacher(SourceConfig):
    """Rollouts of the teacher, or of each domain's teacher."""

    type: Literal["teacher"] = "teacher"

    def needs(self) -> dict[str, tuple[str, ...]]:
        """A teacher that can write the student's tokens."""
        return {"": ("teacher model", "teacher here", "same tokenizer")}

    @property
    def sources(self) -> set[str]:
        """The teacher."""
        return {"teacher"}

    def build(self, run: RunContext) -> RolloutSource:
        """The teacher's sampler."""
        return run.source("teacher")
