"""The teacher's distribution on k tokens, with an honest account of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from opd.axes.context import RunContext
from opd.axes.signals.base import SignalConfig
from opd.errors import ConfigError

if TYPE_CHECKING:
    from opd.types import Objective, Teacher


class TopK(SignalConfig):
    """A divergence over the k likeliest tokens (LSM, arXiv 2603.25562; SDPO, arXiv 2601.20802)."""

    type: Literal["top_k"] = "top_k"
    k: int = Field(ge=1)
    """Number of tokens."""
    support: Literal["teacher", "student", "union", "intersection"] = "teacher"
    """Whose k likeliest tokens, or both sets' union or intersection."""
    rest: Literal["tail", "renormalise", "correct"] = "tail"
    """The other tokens count as one more token together, are left out of both distributions, or are corrected for."""

    distributions = True
    mixable = True
    compares = True

    @model_validator(mode="after")
    def _informative(self) -> TopK:
        if self.k == 1 and self.rest == "renormalise":
            raise ValueError("k=1 with rest=renormalise is 0 everywhere. Fix: set a larger k, or rest=tail")
        return self

    @property
    def recordable(self) -> bool:
        """A recording has the teacher's likeliest tokens alone."""
        return self.support == "teacher"

    def words(self) -> str:
        """The signal's cell in the map."""
        return f"top {self.k} of {self.support}, {self.rest}"

    def build(self, run: RunContext) -> tuple[Teacher, Objective]:
        """The teacher, and the divergence on the support."""
        from opd.losses import Support

        rows = run.student.head_VD.shape[0]
        if self.k > rows:
            raise ConfigError(f"loss.signal.k={self.k} is above the {rows} tokens of the vocabulary. Fix: lower it")
        support = Support(self.k, whose=self.support, rest=self.rest)
        return run.teacher(), run.among_teachers(run.divergence(support=support))
