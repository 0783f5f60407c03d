"""What a person sees of a run: a progress line with ETA in a terminal, plain lines elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from opd.output.format import figure, headline
from opd.output.result import Result
from opd.output.run_log import RunStart
from opd.report.page import REPORT
from opd.report.rows import ROLLOUTS
from opd.report.samples import SAMPLES
from opd.report.terminal import worst_rollout
from opd.types import Metrics

if TYPE_CHECKING:
    from opd.output.result import Result

SHOWN = ("loss", "accuracy", "invalid_call_rate", "distill_share", "grad_norm")
"""Figures of a step that fit in a line; those a run does not have are left out."""

PLAIN_LINES = 10
"""Lines of progress in a log that is no terminal."""


class LiveDisplay:
    """Told by the loop what happens; shows it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.total = 0

    def start(self, run: RunStart) -> None:
        self.total, self.rollouts = run.steps, run.out / ROLLOUTS
        self.task = self.progress.add_task("train", total=run.steps, completed=run.step, figures="")
        self.progress.start()
        if not run.evaluates:
            self.console.print("[yellow]nothing will be measured:[/] there are no eval.prompts and no eval.text")
        if run.step:
            self.console.print(f"going on from step {run.step}")

    def step(self, step: int, metrics: Metrics) -> None:
        line = _figures({k: metrics[k] for k in SHOWN if k in metrics})
        self.progress.update(self.task, completed=step, figures=line)
        if not self.console.is_terminal and step % max(self.total // PLAIN_LINES, 1) == 0:
            self.console.print(f"step {step}/{self.total}  {line}")

    def evaluation(self, step: int, metrics: Metrics) -> None:
        self.console.print(f"[bold]step {step:>4}[/]  {_figures(headline(metrics))}")
        if self.console.is_terminal and (rollout := worst_rollout(self.rollouts, step)):
            self.console.print(rollout)

    def event(self, step: int, kind: str, text: str) -> None:
        self.console.print(f"[yellow]step {step:>4}  {kind}:[/] {escape(text)}")

    def stop(self) -> None:
        self.progress.stop()


def show_result(console: Console, result: Result) -> None:
    """Before and after, and where everything lies."""
    if result.before:
        table = Table("", "before", "after", "best", title=f"after {result.steps} steps, {result.seconds:.0f} s")
        for name, before in headline(result.before).items():
            row = [before, result.after.get(name), result.best.get(name)]
            table.add_row(name, *["" if value is None else figure(name, value) for value in row])
        console.print(table)
    if result.stopped_by:
        console.print(f"[yellow]stopped by the guard '{result.stopped_by}':[/] {escape(result.events[-1]['text'])}")
    console.print(f"model    {result.out}/  (an ordinary Hugging Face folder)")
    console.print(f"figures  {result.out}/README.md, result.json, metrics.jsonl")
    if (result.out / REPORT).exists():
        drawn = (result.out / SAMPLES).is_dir()
        shows = "what the student drew, step by step" if drawn else "what the teacher said about every token"
        console.print(f"report   {result.out}/{REPORT}  ({shows})")


def show_figures(console: Console, title: str, metrics: Metrics) -> None:
    """Figures of one model."""
    table = Table("", escape(title))
    for name, value in metrics.items():
        table.add_row(name, figure(name, value))
    console.print(table)


def _figures(metrics: Metrics) -> str:
    return "  ".join(f"{name} {figure(name, value)}" for name, value in metrics.items())
