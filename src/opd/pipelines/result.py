"""Result of a pipeline and of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StageResult:
    """Result of one stage.

    Attributes:
        state: done, unchanged (not run again), failed, collapsed (stopped by a guard) or blocked (an input is missing).
        problem: the reason why there is no model, as a sentence; otherwise empty.
        result: ``result`` of stage.json: before, after, best, steps, tokens, seconds; of an evaluation, metrics.
    """

    name: str
    out: Path
    state: str
    problem: str
    result: Mapping[str, Any]


@dataclass(frozen=True)
class PipelineResult:
    """Result of a pipeline; ``pipeline.json``, ``report.md`` and ``report.html`` in ``out`` have the same content.

    Attributes:
        unwritten: a sentence for each report that could not be written.
    """

    out: Path
    stages: Mapping[str, StageResult]
    seconds: float
    unwritten: Sequence[str] = ()

    @property
    def problems(self) -> list[str]:
        """One sentence per stage that failed or collapsed, and per report that could not be written."""
        return [*(s.problem for s in self.stages.values() if s.state in ("failed", "collapsed")), *self.unwritten]

    @property
    def exit_status(self) -> int:
        """2 if a stage failed, 1 if a guard stopped a stage, otherwise 0."""
        states = {stage.state for stage in self.stages.values()}
        return 2 if "failed" in states else 1 if "collapsed" in states else 0
