"""Views of a part of what another view shows, and what is left beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opd.types import Rollout, Segment, Span, View


class Among:
    """Another view, restricted to reference answers or to all other rollouts.

    Args:
        view: the view of those rollouts.
        references: of the reference answers, or of all others.
    """

    def __init__(self, view: View, *, references: bool) -> None:
        self.view = view
        self.references = references

    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        """The view's segments, numbered as in the whole batch."""
        chosen = [i for i, rollout in enumerate(rollouts) if (rollout.source == "references") == self.references]
        seen = self.view.segments([rollouts[i] for i in chosen])
        return [replace(segment, rollout=chosen[segment.rollout]) for segment in seen]


def remaining(rollouts: Sequence[Rollout], taken: Sequence[Segment]) -> list[Segment]:
    """The student's tokens that lie in none of the given segments, each after its own history."""
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


def runs(free: Sequence[bool]) -> list[Span]:
    """Spans of consecutive True."""
    edges = [p for p in range(len(free) + 1) if (p < len(free) and free[p]) != (p > 0 and free[p - 1])]
    return [Span(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]
