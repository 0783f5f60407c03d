"""The teacher reads a hint right above the mistake, and scores the faulty span only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from opd import types
from opd.axes.authors import AuthorChoice, Rules
from opd.axes.context import RunContext
from opd.axes.views.base import ViewConfig
from opd.types import HintAuthor, Metrics, Rollout, Segment, Span

if TYPE_CHECKING:
    from opd.models.chat import Chat

DROPPED = ("unparsable", "bad_turn", "too_long")
"""Counts of an author: answers without a hint or ``none``, hints about a turn that is not there, unread transcripts."""


class Hint(ViewConfig):
    """A hint inserted above the mistake; only the faulty span gets a signal (HINT-SD, arXiv 2605.17873)."""

    type: Literal["hint"] = "hint"
    author: AuthorChoice = Rules()
    """What reads the rollouts and writes hints: rules, a local model, or a chat endpoint."""
    place: Literal["turn", "start"] = "turn"
    """Right above the faulty turn, or at the start of the rollout."""
    role: str = "user"
    """Chat role of the hint's message."""
    max_hints: int | None = Field(None, ge=1)
    """Most hints per rollout, the earliest first."""

    report = "with a hint right above each mistake"
    partial = True
    where = "the faulty turns"
    if_empty = "no hint was written. Fix: check teacher.view.author and its hints with opd doctor"

    def needs(self) -> dict[str, tuple[str, ...]]:
        """A teacher pass."""
        return {"": ("teacher pass",)}

    @property
    def sends_requests(self) -> bool:
        """A served author is asked at each use."""
        return self.author.sends_requests

    def words(self) -> str:
        """The view's cell in the map."""
        return f"hint ({self.author.type}, at the {self.place})"

    def build(self, run: RunContext) -> HintView:
        """The view, with its author."""
        author = run.once("author", lambda: run.world.authors(run.author(self.author, key="teacher.view.author")))
        return HintView(author, run.chat, place=self.place, role=self.role, max_hints=self.max_hints)


class HintView:
    """One segment per hint: the history with the hint in it, and the faulty span.

    Source: HINT-SD, arXiv 2605.17873, which measured +8.67 points for hints right above the turn and +2.68 for
    the same hints at the start.

    Args:
        author: reads the rollouts and writes hints.
        chat: renders a hint as a message, or as plain tokens without a template.
        place: right above the faulty turn, or above the first turn.
        role: chat role of the hint's message.
        max_hints: most hints per rollout, the earliest first; None for all.
    """

    def __init__(
        self,
        author: HintAuthor,
        chat: Chat,
        *,
        place: Literal["turn", "start"] = "turn",
        role: str = "user",
        max_hints: int | None = None,
    ) -> None:
        self.author = author
        self.chat = chat
        self.place = place
        self.role = role
        self.max_hints = max_hints
        self.last_hints: list[list[types.Hint]] = []
        """The hints of each rollout of the last call."""
        self.metrics: Metrics = {}
        """``hints/written`` of the last call, and of authors that answer in text what became of the other answers."""

    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        """A segment for every hint that the author writes."""
        counts: Counter[str] | None = getattr(self.author, "counts", None)
        before = Counter(counts)
        written = self.author.hints(rollouts)
        self.metrics = {"hints/written": float(sum(map(len, written)))}
        if counts is not None:
            self.metrics |= {f"hints/{name}": float(counts[name] - before[name]) for name in DROPPED}
        self.last_hints = [apart(hints)[: self.max_hints] for hints in written]
        return [
            Segment(index, self._context(rollouts[index], hint), hint.span)
            for index, hints in enumerate(self.last_hints)
            for hint in hints
        ]

    def _context(self, rollout: Rollout, hint: types.Hint) -> tuple[int, ...]:
        message, chat = {"role": self.role, "content": hint.text}, self.chat.of(rollout.prompt)
        turn = next((turn.start for turn in rollout.turns if turn.start <= hint.span.start < turn.stop), 0)
        above = 0 if self.place == "start" else turn
        history_ids = rollout.prompt_ids + rollout.completion_ids[:above]
        return chat.above_turn(history_ids, message) + rollout.completion_ids[above : hint.span.start]


def apart(hints: Sequence[types.Hint]) -> list[types.Hint]:
    """Hints in order, no two of them about the same position.

    Hints about the same span are joined; of two that overlap in part the later is left out, so that no
    token has two targets.
    """
    texts: dict[Span, list[str]] = {}
    for hint in sorted(hints, key=lambda h: h.span):
        texts.setdefault(hint.span, []).append(hint.text)
    kept: list[types.Hint] = []
    for span, parts in texts.items():
        if not kept or span.start >= kept[-1].span.stop:
            kept.append(types.Hint(span, " ".join(dict.fromkeys(parts))))
    return kept
