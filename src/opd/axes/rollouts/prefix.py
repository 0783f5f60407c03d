"""The student continues after a beginning that the teacher wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from opd.axes.context import RunContext
from opd.axes.rollouts.base import SourceConfig

if TYPE_CHECKING:
    from opd.types import RolloutSource


class Prefix(SourceConfig):
    """The teacher writes the first tokens or the first turns of each rollout, and the student goes on."""

    type: Literal["prefix"] = "prefix"
    tokens: int = Field(0, ge=0)
    """Most tokens of the first turn that the teacher writes; the number is drawn anew for every batch."""
    turns: int = Field(0, ge=0)
    """Most first turns that the teacher plays, drawn anew for every batch; the last turn is the student's (ReOPD)."""

    @model_validator(mode="after")
    def _something(self) -> Prefix:
        if not self.tokens and not self.turns:
            raise ValueError("tokens and turns are both 0, so the teacher begins nothing. Fix: set one of them")
        return self

    def needs(self) -> dict[str, tuple[str, ...]]:
        """One teacher that can write the student's tokens."""
        return {"": ("teacher model", "teacher here", "one teacher", "same tokenizer", "room after the prefix")}

    def words(self) -> str:
        """The source's cell in the map."""
        what = f"{self.tokens} of the teacher's tokens" if self.tokens else f"{self.turns} of the teacher's turns"
        return f"student after up to {what}"

    def build(self, run: RunContext) -> RolloutSource:
        """The student's sampler, after the teacher's beginning."""
        return run.source("student", prefix=(self.tokens, self.turns))
