"""Rollout sources: what writes the completions to train on."""

from typing import Annotated

from pydantic import SerializeAsAny

from opd.axes.base import axis
from opd.axes.rollouts.base import GivenSource, SourceConfig
from opd.axes.rollouts.mixture import Mixture
from opd.axes.rollouts.prefix import Prefix
from opd.axes.rollouts.recorded import Recorded
from opd.axes.rollouts.references import References
from opd.axes.rollouts.student import Student
from opd.axes.rollouts.teacher import Teacher

SourceChoice = Annotated[
    SerializeAsAny[SourceConfig],
    axis(SourceConfig, Student, Teacher, References, Mixture, Prefix, Recorded, GivenSource),
]

__all__ = ["SourceChoice", "SourceConfig", "Student"]
