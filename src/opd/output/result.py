"""The result of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd.types import Metrics


@dataclass(frozen=True)
class Result:
    """The result of a run; ``result.json`` holds the same.

    Attributes:
        out: folder with the model, ``metrics.jsonl`` and ``result.json``.
        before, after, best: evaluation metrics before training, of the saved weights, and of the best evaluation.
        steps: optimizer steps taken. tokens: tokens that the student generated in those steps.
        seconds: training time, including one-off preparation.
        stopped_by: the guard that stopped the run, or None.
        events: observations and actions of the guards: step, kind, text.
    """

    out: Path
    before: Metrics
    after: Metrics
    best: Metrics
    steps: int
    tokens: int
    seconds: float
    stopped_by: str | None
    events: list[dict[str, Any]]

    @property
    def reason(self) -> str:
        """Why the guard stopped the run; empty if none did."""
        return why_stopped(self.stopped_by, self.events)


def why_stopped(guard: str | None, events: Sequence[Mapping[str, Any]]) -> str:
    """What a guard saw at the end, and the rollback that followed, if any; empty without a guard."""
    at = max((n for n, event in enumerate(events) if event["kind"] == guard), default=len(events))
    return "; ".join(event["text"] for event in events[at:] if event["kind"] in (guard, "rollback"))
