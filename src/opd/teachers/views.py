"""Views: what a teacher reads. Each returns segments of the student's own tokens behind some context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from opd.models.chat import Chat
from opd.types import Hint, HintAuthor, Rollout, Segment, Span, View


class PlainView:
    """The teacher reads what the student read."""

    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        """One segment per rollout: the prompt, and the whole completion."""
        return [whole(index, rollout.prompt_ids, rollout) for index, rollout in enumerate(rollouts)]


class Among:
    """Another view, of the rollouts of certain sources.

    Args:
        view: what to see of them.
        answers: of the reference answers, or of all others.
    """

    def __init__(self, view: View, *, answers: bool) -> None:
        self.view = view
        self.answers = answers

    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        """The view's segments, numbered as in the whole batch."""
        chosen = [i for i, rollout in enumerate(rollouts) if (rollout.source == "references") == self.answers]
        seen = self.view.segments([rollouts[i] for i in chosen])
        return [replace(segment, rollout=chosen[segment.rollout]) for segment in seen]


class HintView:
    """The teacher reads a hint that someone wrote about a mistake, and speaks about the faulty span alone.

    Source: HINT-SD, arXiv 2605.17873, which measured +8.67 points for hints right above the turn and +2.68 for
    the same hints at the start.

    Args:
        author: reads the rollouts and writes hints.
        chat: renders a hint as a message, or as plain tokens without a template.
        place: right above the faulty turn, or above the first turn.
        role: chat role the hint speaks in.
        max_hints: the most hints per rollout, the earliest first; None for all.
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
        self.last_hints: list[list[Hint]] = []
        """What was said about each rollout of the last call."""

    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        """One segment per hint: the history with the hint in it, and the faulty span."""
        written = self.author.hints(rollouts)
        self.last_hints = [apart(hints)[: self.max_hints] for hints in written]
        return [
            Segment(index, self._context(rollouts[index], hint), hint.span)
            for index, hints in enumerate(self.last_hints)
            for hint in hints
        ]

    def _context(self, rollout: Rollout, hint: Hint) -> tuple[int, ...]:
        message = {"role": self.role, "content": hint.text}
        before = rollout.completion_ids[: hint.span.start]
        if self.place == "start":
            return self.chat.above_turn(rollout.prompt_ids, message) + before
        return self.chat.above_turn(rollout.prompt_ids + before, message)


def apart(hints: Sequence[Hint]) -> list[Hint]:
    """Hints in order, none about a position that an earlier one is about.

    Hints about the same span are joined; of two that overlap in part the later is left out, so that no
    token has two targets.
    """
    texts: dict[Span, list[str]] = {}
    for hint in sorted(hints, key=lambda h: h.span):
        texts.setdefault(hint.span, []).append(hint.text)
    kept: list[Hint] = []
    for span, parts in texts.items():
        if not kept or span.start >= kept[-1].span.stop:
            kept.append(Hint(span, " ".join(dict.fromkeys(parts))))
    return kept


def remaining(rollouts: Sequence[Rollout], taken: Sequence[Segment]) -> list[Segment]:
    """The student-chosen tokens that lie in none of the given segments, read in their own history."""
    covered: dict[int, set[int]] = {}
    for segment in taken:
        covered.setdefault(segment.rollout, set()).update(range(*segment.span))
    segments = []
    for index, rollout in enumerate(rollouts):
        free = [m and p not in covered.get(index, ()) for p, m in enumerate(rollout.completion_mask)]
        for span in runs(free):
            context = rollout.prompt_ids + rollout.completion_ids[: span.start]
            segments.append(Segment(index, context, span))
    return segments


def whole(index: int, context_ids: tuple[int, ...], rollout: Rollout) -> Segment:
    """A rollout's whole completion behind some context."""
    return Segment(index, context_ids, Span(0, len(rollout.completion_ids)))


def runs(free: Sequence[bool]) -> list[Span]:
    """Spans of consecutive True."""
    edges = [p for p in range(len(free) + 1) if (p < len(free) and free[p]) != (p > 0 and free[p - 1])]
    return [Span(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]
