"""Terminal output of a run: a progress bar with the time left in a terminal, lines elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from opd.output.callbacks import RunStart
from opd.output.format import STEP, format_line, format_value, headline
from opd.output.log_lines import LogLines, result_lines, speed
from opd.output.result import Result
from opd.output.visible import sentence
from opd.report.files import ROLLOUTS
from opd.report.page import REPORT
from opd.report.samples import SAMPLES
from opd.report.terminal import worst_rollout
from opd.types import Metrics

if TYPE_CHECKING:
    from opd.output.result import Result


def run_display(console: Console) -> LiveDisplay | LogLines:
    """What shows a run: a progress bar in a terminal, otherwise lines."""
    return LiveDisplay(console) if console.is_terminal else LogLines(console)


class LiveDisplay:
    """A progress bar over steps, and a line for each evaluation and event."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
        )

    def start(self, run: RunStart) -> None:
        self.run, self.rollouts = run, run.out / ROLLOUTS
        self.task = self.progress.add_task("train", total=run.steps, completed=run.step, metrics="")
        self.progress.start()
        if run.settings:
            self.console.print(escape(run.settings), highlight=False, soft_wrap=True)
        if not run.evaluates:
            self.console.print("[yellow]no evaluation:[/] neither eval.prompts nor eval.text is set")
        if run.step:
            self.console.print(f"resuming from step {run.step}")

    def step(self, step: int, metrics: Metrics) -> None:
        pace = [f"{rate} {unit}" for unit, rate in speed(self.run, metrics).items()]
        line = "  ".join([*pace, format_line({k: metrics[k] for k in STEP if k in metrics})])
        self.progress.update(self.task, completed=step, metrics=line)

    def evaluation(self, step: int, metrics: Metrics) -> None:
        self.console.print(f"[bold]step {step:>4}[/]  {format_line(headline(metrics))}")
        if rollout := worst_rollout(self.rollouts, step):
            self.console.print(rollout)

    def event(self, step: int, kind: str, text: str) -> None:
        self.console.print(f"[yellow]step {step:>4}  {kind}:[/] {escape(sentence(text))}")

    def stop(self) -> None:
        self.progress.stop()


def show_result(console: Console, result: Result) -> None:
    """Print metrics before and after training, and the paths of the output."""
    if not console.is_terminal:
        result_lines(console, result)
        return
    if result.before:
        table = Table("", "before", "after", "best", title=f"after {result.steps} steps, {result.seconds:.0f} s")
        for name, before in headline(result.before).items():
            row = [before, result.after.get(name), result.best.get(name)]
            table.add_row(name, *["" if value is None else format_value(name, value) for value in row])
        console.print(table)
    if result.stopped_by:
        reason = escape(sentence(result.reason))
        console.print(f"[yellow]stopped by the guard '{result.stopped_by}':[/] {reason}")
    console.print(f"model    {result.out}/  (an ordinary Hugging Face folder)")
    console.print(f"metrics  {result.out}/README.md, result.json, metrics.jsonl")
    if (result.out / REPORT).exists():
        drawn = (result.out / SAMPLES).is_dir()
        shows = "the student's images, step by step" if drawn else "student and teacher, token by token"
        console.print(f"report   {result.out}/{REPORT}  ({shows})")


def show_metrics(console: Console, title: str, metrics: Metrics) -> None:
    """Print the metrics of one model as a table."""
    table = Table("", escape(title))
    for name, value in metrics.items():
        table.add_row(name, format_value(name, value))
    console.print(table)
