"""The teacher's whole distribution at every token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from opd.axes.context import RunContext
from opd.axes.signals.base import SignalConfig

if TYPE_CHECKING:
    from opd.types import Objective, Teacher


class Full(SignalConfig):
    """The whole vocabulary, without ever storing logits (GKD, arXiv 2306.13649)."""

    type: Literal["full"] = "full"
    clip: float | None = Field(None, gt=0)
    """The most that one token of the vocabulary adds to a position's divergence, in nats (OPSD, arXiv 2601.18734)."""

    distributions = True
    mixable = True
    compares = True

    def words(self) -> str:
        """The signal's cell in the map."""
        return "full vocabulary"

    def check_divergence(self, name: str) -> None:
        """Refuse to clip a divergence that cannot be clipped."""
        from opd.losses.divergences import clipped

        if self.clip is not None:
            clipped(name, self.clip)

    def build(self, run: RunContext) -> tuple[Teacher, Objective]:
        """The teacher, and the divergence over the whole vocabulary."""
        return run.teacher(), run.among_teachers(run.divergence(clip=self.clip))
