"""The base class of rollout sources: what writes the completions to train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from opd.axes.base import AxisValue
from opd.axes.context import RunContext

if TYPE_CHECKING:
    from opd.types import RolloutSource, Term


class SourceConfig(AxisValue):
    """A rollout source; ``build`` makes the object with ``rollout(prompts, seed, step)``."""

    axis = "rollout.source"

    @property
    def sources(self) -> set[str]:
        """Everything that writes completions: student, teacher, references."""
        return {"student"}

    @property
    def first_prompts(self) -> int | None:
        """How many of the training prompts it uses, the first ones; None for all."""
        return None

    def build(self, run: RunContext) -> RolloutSource:
        """What makes the rollouts of a step."""
        raise NotImplementedError

    def attach(self, run: RunContext, terms: Sequence[Term]) -> tuple[RolloutSource, list[Term]]:
        """The source, and the loss terms as they are with it."""
        return self.build(run), list(terms)


class GivenSource(SourceConfig):
    """A ``RolloutSource`` that was given to ``opd.train`` as ``sampler``."""

    type: Literal["given from Python"] = "given from Python"

    def build(self, run: RunContext) -> RolloutSource:
        """The source as it was given."""
        source: RolloutSource = run.given("sampler")
        return run.world.shared(source)
