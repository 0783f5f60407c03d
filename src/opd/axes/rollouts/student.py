"""The student writes its own completions: on-policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from opd.axes.context import RunContext
from opd.axes.rollouts.base import SourceConfig

if TYPE_CHECKING:
    from opd.types import RolloutSource


class Student(SourceConfig):
    """On-policy rollouts."""

    type: Literal["student"] = "student"

    def build(self, run: RunContext) -> RolloutSource:
        """The student's sampler."""
        return run.source("student")
