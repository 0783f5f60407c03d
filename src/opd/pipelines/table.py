"""Terminal output of a pipeline: a live table in a terminal, one line per event elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from opd.output.format import format_value, main_metric
from opd.output.visible import sentence
from opd.pipelines.progress import Row
from opd.pipelines.result import PipelineResult

COLOURS = {
    "waiting": "dim",
    "running": "cyan",
    "done": "green",
    "unchanged": "green",
    "failed": "red",
    "collapsed": "red",
    "blocked": "yellow",
}

REWARDED = ("accuracy", "avg@", "reward")
"""Prefixes of the metrics in the terminal's table, if there are any; the report has all metrics."""


class LiveTable:
    """A table with one line per stage, redrawn four times a second."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live: Live | None = None

    def start(self, rows: Mapping[str, Row]) -> None:
        self.live = Live(get_renderable=lambda: table(rows), console=self.console, refresh_per_second=4)
        self.live.start()

    def changed(self, row: Row) -> None: ...

    def validated(self, row: Row) -> None: ...

    def stop(self) -> None:
        if self.live:
            self.live.stop()


class Lines:
    """One line per event, for logs."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def start(self, rows: Mapping[str, Row]) -> None: ...

    def changed(self, row: Row) -> None:
        text = {"running": row.event, "failed": row.problem, "collapsed": row.problem, "blocked": row.problem}
        time = f"{row.seconds:.0f} s" if row.state == "done" else ""
        self._print(row, row.state, time, text.get(row.state, validation(row) if row.stage.kind == "train" else ""))

    def validated(self, row: Row) -> None:
        self._print(row, f"{row.step}/{row.stage.steps}", validation(row))

    def stop(self) -> None: ...

    def _print(self, row: Row, *parts: str) -> None:
        line = "  ".join(sentence(part) for part in (row.stage.name, *parts) if part)
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def display(console: Console) -> LiveTable | Lines:
    """A live table for a terminal, otherwise lines."""
    return LiveTable(console) if console.is_terminal else Lines(console)


def table(rows: Mapping[str, Row]) -> Table:
    """The table of all stages."""
    shown = Table("stage", "", "state", "progress", "validation", "time", "last event")
    for row in rows.values():
        stage = row.stage
        progress = f"{row.step}/{stage.steps}" if stage.steps and row.state != "waiting" else ""
        seconds = f"{row.seconds:.0f} s" if row.seconds else ""
        colour = COLOURS[row.state]
        cells = [stage.name, stage.title, f"[{colour}]{row.state}[/]", progress]
        shown.add_row(*cells, validation(row), seconds, escape(sentence(row.problem or row.event)))
    return shown


def validation(row: Row) -> str:
    """The main metric at the start and now; of an evaluation stage, of the newest model."""
    name = main_metric(row.now)
    if name is None:
        return ""
    now = format_value(name, row.now[name])
    if row.stage.kind == "eval" or row.first is row.now or name not in row.first:
        return f"{name} {now}"
    return f"{name} {format_value(name, row.first[name])} → {now}"


def show(console: Console, result: PipelineResult) -> None:
    """Print the metrics of every evaluation stage, and the paths of the output."""
    for stage in result.stages.values():
        models = stage.result.get("metrics", {})
        known = list(dict.fromkeys(name for metrics in models.values() for name in metrics))
        names = [name for name in known if name.startswith(REWARDED)] or known
        shown = Table("model", *(name.replace("/", "/\n") for name in names), title=stage.name)
        for model, metrics in models.items():
            cells = (format_value(name, metrics[name]) if name in metrics else "" for name in names)
            shown.add_row(escape(model.removeprefix("stage:")), *cells)
        if models:
            console.print(shown)
    console.print(f"models   {result.out}/STAGE/  (ordinary Hugging Face folders)")
    console.print(f"metrics  {result.out}/report.html, report.md, pipeline.json")
