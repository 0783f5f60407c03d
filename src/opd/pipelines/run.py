"""``opd.pipeline``: run the stages that are out of date, each in a process of its own, in the order of the graph."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd.errors import ConfigError, OpdError
from opd.output.run_folder import is_empty, locked, write_json, write_text
from opd.pipelines import state
from opd.pipelines.checks import check
from opd.pipelines.config import PipelineConfig, read
from opd.pipelines.graph import Stage, build
from opd.pipelines.process import Worker
from opd.pipelines.progress import FINAL, LOST, Row, State, Tail
from opd.pipelines.report import DATA, REPORT, data, report
from opd.pipelines.table import Display
from opd.report.pipeline import write_pipeline_page

POLL_S = 0.1

KEPT_BEST = frozenset({"collapse", "non_finite"})
"""Guards after which the folder holds the best weights and not the last; nothing is built on those unasked."""

LOGS = ".logs"
"""What the stages' processes print."""


@dataclass(frozen=True)
class StageResult:
    """What one stage came to.

    Attributes:
        state: done, unchanged (nothing to do), failed, collapsed (stopped by a guard) or blocked (by one of these).
        problem: a sentence where it has no model to use, otherwise empty.
        result: the figures of ``stage.json``: before, after, best, steps, tokens, seconds; figures per model.
    """

    name: str
    out: Path
    state: str
    problem: str
    result: Mapping[str, Any]


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline came to; ``pipeline.json``, ``report.md`` and ``report.html`` in ``out`` say the same."""

    out: Path
    stages: Mapping[str, StageResult]
    seconds: float

    @property
    def problems(self) -> list[str]:
        """A sentence for every stage that failed or collapsed."""
        return [s.problem for s in self.stages.values() if s.state in ("failed", "collapsed")]

    @property
    def exit_status(self) -> int:
        """0; 1 if a guard stopped a stage; 2 if a stage failed."""
        states = {stage.state for stage in self.stages.values()}
        return 2 if "failed" in states else 1 if "collapsed" in states else 0


def pipeline(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    displays: Sequence[Display] = (),
) -> PipelineResult:
    """Run a pipeline, or go on with it: stages whose settings and inputs are as they were are not run again.

    Stages run in fresh processes, in which nothing is registered that was registered in this one.

    Args:
        source: ``"pipeline.yaml"`` or ``{"out": ..., "stages": {...}}``.
        overrides: ``{"stages.first.optimizer.steps": 5}`` or ``["stages.first.optimizer.steps=5"]``.
        displays: are told what happens.

    Returns:
        Every stage's state and figures. A stage that fails stops those that depend on it and no others.

    Raises:
        OpdError: the pipeline cannot be started; one sentence says why, and nothing was run.
    """
    config = read(source, overrides)
    stages = build(config)
    check(stages)
    out = Path(config.out)
    if not is_empty(out) and not (out / DATA).is_file():
        raise ConfigError(f"out: '{out}' exists and is no pipeline of opd; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        for stage in stages.values():
            state.check(stage, out / stage.name)
        return _Runner(config, stages, displays).run()


class _Runner:
    """Starts what is ready, listens to what runs, and remembers how it went."""

    def __init__(self, config: PipelineConfig, stages: Mapping[str, Stage], displays: Sequence[Display]) -> None:
        self.config, self.displays = config, displays
        self.out = Path(config.out)
        self.rows = {name: Row(stage) for name, stage in stages.items()}
        self.workers: dict[str, tuple[Worker, Tail]] = {}
        self.digests: dict[str, str | None] = {}
        self.begun = time.monotonic()

    def run(self) -> PipelineResult:
        (self.out / LOGS).mkdir(exist_ok=True)
        self._save()
        try:
            for display in self.displays:
                display.start(self.rows)
            while self._start_ready() or self.workers:
                time.sleep(POLL_S if self.workers else 0)
                for name in list(self.workers):
                    self._listen(name)
        finally:
            for name, (worker, _) in self.workers.items():
                worker.stop()
                self.rows[name].state = "waiting"
            self._save()
            with suppress(OSError):  # a full disk must not hide how it ended
                write_pipeline_page(self.out)
            for display in self.displays:
                display.stop()
        seconds = time.monotonic() - self.begun
        write_text(self.out / REPORT, report(self.out, self.rows, seconds))
        results = {
            name: StageResult(name, self.out / name, row.state, row.problem, row.result)
            for name, row in self.rows.items()
        }
        return PipelineResult(self.out, results, seconds)

    def _start_ready(self) -> bool:
        """Look at every stage that waits; True if one of them needs no more waiting."""
        moved = False
        for row in self.rows.values():
            inputs = {self.rows[name].state for name in row.stage.inputs}
            if row.state != "waiting":
                continue
            if inputs & LOST:
                lost = next(name for name in row.stage.inputs if self.rows[name].state in LOST)
                row.problem = f"stage '{row.stage.name}' was not run, as stage '{lost}' has no model to give"
                self._change(row, "blocked")
                moved = True
            elif inputs <= FINAL and len(self.workers) < self.config.parallel:
                self._begin(row)
                moved = True
        return moved

    def _begin(self, row: Row) -> None:
        try:
            self._take_over_or_start(row)
        except OpdError as error:
            self._fail(row, str(error))

    def _take_over_or_start(self, row: Row) -> None:
        """What is there already, or a new process."""
        stage, folder = row.stage, self.out / row.stage.name
        new = state.mark(stage, self._inputs(stage))
        record = state.read(folder / state.FINISHED)
        if record and record["fingerprint"] == new["fingerprint"]:
            self._finish(row, record, fresh=False)
            return
        old = record or state.read(folder / state.STARTED)
        if old and old["fingerprint"] != new["fingerprint"] and not is_empty(folder):
            row.event = f"{state.difference(old, new)}; the old folder is {state.supersede(self.out, stage.name)}"
        folder.mkdir(exist_ok=True)
        write_json(folder / state.STARTED, new)
        job = {"folder": str(folder), "settings": stage.resolved(self.out), "started": new}
        row.begun = time.monotonic()
        self.workers[stage.name] = (Worker(job, self.out / LOGS / f"{stage.name}.log"), Tail(folder / "metrics.jsonl"))
        self._change(row, "running")

    def _inputs(self, stage: Stage) -> dict[str, str]:
        """Digests of everything that a stage reads."""
        digests = {f"stage:{name}": state.output_digest(self.rows[name].record or {}) for name in stage.inputs}
        for _, name in stage.outside():
            if name not in self.digests:
                self.digests[name] = state.outside_digest(name)
            digest = self.digests[name]
            digests |= {name: digest} if digest else {}
        return digests

    def _listen(self, name: str) -> None:
        """Follow a process's figures, and take over its answer."""
        row, (worker, tail) = self.rows[name], self.workers[name]
        answer = worker.answer()
        for line in tail.lines():
            if row.follow(line):
                for display in self.displays:
                    display.validated(row)
        if answer is None:
            return
        del self.workers[name]
        record = state.read(self.out / name / state.FINISHED)
        if answer or record is None:
            self._fail(row, answer or "its stage.json is gone")
        else:
            self._finish(row, record, fresh=True)

    def _fail(self, row: Row, why: str) -> None:
        row.problem = f"stage '{row.stage.name}': {why}"
        self._change(row, "failed")

    def _finish(self, row: Row, record: Mapping[str, Any], *, fresh: bool) -> None:
        """A stage is over; one that collapsed gives nothing on."""
        row.finish(record, "done" if fresh else "unchanged")
        guard = row.result.get("stopped_by")
        if guard in KEPT_BEST:
            row.problem = (
                f"stage '{row.stage.name}' was stopped by the guard '{guard}' ({row.result['events'][-1]['text']}); "
                f"change its settings, or name '{self.out / row.stage.name}' itself to go on from its best weights"
            )
        self._change(row, "collapsed" if row.problem else row.state)

    def _change(self, row: Row, new: State) -> None:
        row.state = new
        self._save()
        for display in self.displays:
            display.changed(row)

    def _save(self) -> None:
        write_json(self.out / DATA, data(self.config, self.rows, time.monotonic() - self.begun))
