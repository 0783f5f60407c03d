"""The prompts' reference answers, as if they had been sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from opd.axes.context import RunContext
from opd.axes.rollouts.base import SourceConfig

if TYPE_CHECKING:
    from opd.types import RolloutSource


class References(SourceConfig):
    """Worked solutions, turn by turn if an environment answers between turns."""

    type: Literal["references"] = "references"

    def needs(self) -> dict[str, tuple[str, ...]]:
        """A reference answer to every prompt."""
        return {"": ("answers",)}

    @property
    def sources(self) -> set[str]:
        """The references."""
        return {"references"}

    def build(self, run: RunContext) -> RolloutSource:
        """The reference answers."""
        return run.source("references")
