"""``opd.pipeline``: run all stages that are out of date, each in its own process, in the order of the graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.distributed import check_alone
from opd.errors import ConfigError, OpdError
from opd.output.faults import as_sentences
from opd.output.result import why_stopped
from opd.output.run_folder import is_empty, locked, write_json, write_text
from opd.pipelines import state
from opd.pipelines.checks import check
from opd.pipelines.config import PipelineConfig, read
from opd.pipelines.graph import Stage, build
from opd.pipelines.process import Worker, end_all
from opd.pipelines.progress import FINAL, LOST, Display, Row, State, Tail
from opd.pipelines.report import REPORT, data, report
from opd.pipelines.result import PipelineResult, StageResult
from opd.report.page import REPORT as PAGE
from opd.report.pipeline import DATA, write_pipeline_page
from opd.training.guards import SYMPTOMS
from opd.training.interrupts import Interrupted, noticed

POLL_S = 0.1

KEPT_BEST = frozenset({"collapse", "non_finite", *SYMPTOMS})
"""Guards that restore the best weights, or good ones. Dependent stages do not use them unless named by path."""

LOGS = ".logs"
"""Folder with the output of the stages' processes."""


@as_sentences()
def pipeline(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    displays: Sequence[Display] = (),
) -> PipelineResult:
    """Run a pipeline, or resume it. A stage with unchanged settings and inputs is not run again.

    Stages run in new processes, which do not see tasks or divergences registered in this one.

    Args:
        source: ``"pipeline.yaml"`` or ``{"out": ..., "stages": {...}}``.
        overrides: ``{"stages.first.optimizer.steps": 5}`` or ``["stages.first.optimizer.steps=5"]``.
        displays: show the progress.

    Returns:
        State and metrics of every stage. A failed stage blocks only the stages that depend on it.

    Raises:
        OpdError: the pipeline cannot start; no stage was run.
    """
    check_alone("opd pipeline")
    config = read(source, overrides)
    stages = build(config)
    check(stages)
    out = Path(config.out)
    if not is_empty(out) and not (out / DATA).is_file():
        raise ConfigError(f"out: '{out}' exists and is no pipeline of opd. Fix: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        for stage in stages.values():
            state.check(stage, out / stage.name)
        return _Runner(config, stages, displays).run()


class _Runner:
    """Starts stages that are ready, follows running ones, and records their results."""

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
            with noticed("running stages save a checkpoint and end") as asked:
                while self._start_ready() or self.workers:
                    time.sleep(POLL_S if self.workers else 0)
                    for name in list(self.workers):
                        self._follow(name)
                    if asked.number:
                        end_all([worker for worker, _ in self.workers.values()])
                        raise Interrupted(asked.number, f"interrupted by {asked.name}; the same command goes on")
        finally:
            for name, (worker, _) in self.workers.items():
                worker.stop()
                self.rows[name].state = "waiting"
            self._save()
            seconds = time.monotonic() - self.begun
            unwritten = self._write_reports(seconds)
            for display in self.displays:
                display.stop()
        results = {
            name: StageResult(name, self.out / name, row.state, row.problem, row.result)
            for name, row in self.rows.items()
        }
        return PipelineResult(self.out, results, seconds, unwritten)

    def _write_reports(self, seconds: float) -> list[str]:
        """Write both reports; returns a sentence for each that cannot be written, which must not hide the result."""
        unwritten = []
        reports: dict[str, Callable[[], object]] = {
            PAGE: lambda: write_pipeline_page(self.out),
            REPORT: lambda: write_text(self.out / REPORT, report(self.out, self.rows, seconds)),
        }
        for name, write in reports.items():
            try:
                write()
            except (OSError, OpdError) as error:
                unwritten.append(f"{name} was not written: {error}. Fix: make room for it and run the pipeline again")
        return unwritten

    def _start_ready(self) -> bool:
        """Start or block every waiting stage that can be; returns whether there was one."""
        moved = False
        for row in self.rows.values():
            inputs = {self.rows[name].state for name in row.stage.inputs}
            if row.state != "waiting":
                continue
            if inputs & LOST:
                lost = next(name for name in row.stage.inputs if self.rows[name].state in LOST)
                row.problem = f"stage '{row.stage.name}' was not run, because stage '{lost}' has no model"
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
        """Reuse a finished stage with the same fingerprint, or start a process."""
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
        """Digest of every input of a stage."""
        digests = {f"stage:{name}": state.output_digest(self.rows[name].record or {}) for name in stage.inputs}
        for _, name in stage.outside():
            if name not in self.digests:
                self.digests[name] = state.outside_digest(name)
            digest = self.digests[name]
            digests |= {name: digest} if digest else {}
        return digests

    def _follow(self, name: str) -> None:
        """Read a process's new metrics, and its answer once it has ended."""
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
            self._fail(row, answer or "its stage.json is missing")
        else:
            self._finish(row, record, fresh=True)

    def _fail(self, row: Row, why: str) -> None:
        row.problem = f"stage '{row.stage.name}': {why}"
        self._change(row, "failed")

    def _finish(self, row: Row, record: Mapping[str, Any], *, fresh: bool) -> None:
        """Record a finished stage. After a collapse its model is not used by later stages."""
        row.finish(record, "done" if fresh else "unchanged")
        guard = row.result.get("stopped_by")
        if guard in KEPT_BEST:
            why = why_stopped(guard, row.result["events"])
            row.problem = (
                f"stage '{row.stage.name}' was stopped by the guard '{guard}' ({why}). "
                f"Fix: change its settings, or use its best weights by naming the path '{self.out / row.stage.name}'"
            )
        self._change(row, "collapsed" if row.problem else row.state)

    def _change(self, row: Row, new: State) -> None:
        row.state = new
        self._save()
        for display in self.displays:
            display.changed(row)

    def _save(self) -> None:
        write_json(self.out / DATA, data(self.config, self.rows, time.monotonic() - self.begun))
