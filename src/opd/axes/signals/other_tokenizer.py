"""The distribution of a teacher with another tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from opd.axes.context import RunContext
from opd.axes.signals.base import SignalConfig

if TYPE_CHECKING:
    from opd.types import Objective, Teacher


class OtherTokenizer(SignalConfig):
    """JSD on the common tokens, sorted distance on the others, group by group (GOLD in TRL; ULD, arXiv 2402.12030)."""

    type: Literal["other_tokenizer"] = "other_tokenizer"
    beta: float = Field(0.5, gt=0, lt=1)
    """Mixture weight of the JSD."""
    matched_weight: float | None = Field(None, ge=0)
    """Weight of the common tokens; by default their share of the teacher's vocabulary, as in GOLD."""
    unmatched_weight: float | None = Field(None, ge=0)
    """Weight of the other tokens; by default 1 less that share."""
    pieces: Literal["text", "observed"] = "observed"
    """How a group of several tokens counts: by the probability of its text, or as GOLD has it ("observed")."""

    same_tokenizer = False

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Another model that reads the plain conversation and writes nothing for the student."""
        return {"": ("teacher model", "one teacher", "plain view")}

    def words(self) -> str:
        """The signal's cell in the map."""
        return "another tokenizer"

    def distance(self, divergence: str) -> str:
        """What the loss measures."""
        return "Jensen–Shannon over common text"

    def build(self, run: RunContext) -> tuple[Teacher, Objective]:
        """A teacher that reads text, and the hybrid distance."""
        import torch

        from opd.losses.cross import Matched
        from opd.losses.objectives import CrossTokenizer
        from opd.teachers.alignment import TokenTexts, match
        from opd.teachers.cross import CrossTeacher

        student, teacher = run.student, run.scoring
        sides = TokenTexts(student.tokenizer), TokenTexts(teacher.tokenizer)

        def matched(*, opening: bool) -> Matched:
            ours, theirs = (torch.tensor(ids, device=student.device) for ids in match(*sides, opening=opening))
            share = len(theirs) / len(teacher.tokenizer)
            weight = share if self.matched_weight is None else self.matched_weight
            rest = 1 - share if self.unmatched_weight is None else self.unmatched_weight
            return Matched(ours, theirs, weight, rest)

        scorer = CrossTeacher(
            student.tokenizer,
            teacher,
            skip_ids=run.stop_ids,
            max_tokens=run.config.teacher.max_tokens,
            temperature=run.config.loss.temperature,
        )
        objective = CrossTokenizer(
            opening=matched(opening=True),
            inside=matched(opening=False),
            pieces=self.pieces,
            beta=self.beta,
            temperature=run.config.loss.temperature,
            chunk_tokens=run.config.loss.chunk_tokens,
        )
        return scorer, objective
