"""The teacher reads what the student read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from opd.axes.context import RunContext
from opd.axes.views.base import ViewConfig, whole
from opd.types import Rollout, Segment


class Plain(ViewConfig):
    """No further context."""

    type: Literal["plain"] = "plain"

    alone = True
    report = "after exactly what the student read"

    def build(self, run: RunContext) -> PlainView:
        """The view."""
        return PlainView()


class PlainView:
    """One segment per rollout: the prompt, and the whole completion."""

    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        """Every completion after its own prompt."""
        return [whole(index, rollout.prompt_ids, rollout) for index, rollout in enumerate(rollouts)]
