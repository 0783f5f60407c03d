"""Output of a run where there is no terminal: lines of ``key=value`` that are never wrapped, or the lines as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from opd.output.callbacks import RunStart
from opd.output.format import STEP, format_value, headline
from opd.output.result import Result
from opd.output.run_folder import json_line
from opd.output.visible import sentence
from opd.types import Metrics

SECONDS = 2.0
"""Least time between two lines of steps; the first and the last step always have one."""
TIMES = ("rollout_s", "teacher_s", "update_s")


class LogLines:
    """Prints steps, evaluations and events of a run, one line each.

    ``step=10/100 loss=0.033 accuracy=95.3% tok/s=2100 left=41s``. An evaluation begins with ``eval step=``, an event
    with ``event step=``. A text in quotes is a JSON string.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def start(self, run: RunStart) -> None:
        self.run, self.began, self.printed = run, time.monotonic(), 0.0
        if not run.evaluates:
            self._line("note", text="nothing is evaluated: neither eval.prompts nor eval.text is set")
        if run.settings:
            self._line("note", text=run.settings)
        if run.step:
            self._line("note", text=f"resuming from step {run.step}")

    def step(self, step: int, metrics: Metrics) -> None:
        now = time.monotonic()
        if now - self.printed < SECONDS and step != self.run.steps:
            return
        self.printed = now
        left = (now - self.began) / max(step - self.run.step, 1) * (self.run.steps - step)
        values = _values({name: metrics[name] for name in STEP if name in metrics})
        self._line("", step=f"{step}/{self.run.steps}", **values, **speed(self.run, metrics), left=f"{left:.0f}s")

    def evaluation(self, step: int, metrics: Metrics) -> None:
        self._line("eval", step=f"{step}/{self.run.steps}", **_values(headline(metrics)))

    def event(self, step: int, kind: str, text: str) -> None:
        self._line("event", step=f"{step}/{self.run.steps}", kind=kind, text=text)

    def _line(self, word: str, **values: str) -> None:
        pairs = [f"{key}={_quoted(value) if key == 'text' else value}" for key, value in values.items()]
        _print(self.console, " ".join([word, *pairs] if word else pairs))


def speed(run: RunStart, metrics: Metrics) -> dict[str, str]:
    """The student's tokens per second of a step, or its images, under that unit; empty if the times are unknown."""
    taken = sum(metrics[name] for name in TIMES if name in metrics)
    done, unit = (run.images, "images/s") if run.images else (metrics.get("tokens"), "tok/s")
    return {unit: f"{done / taken:.{0 if done >= 100 * taken else 1}f}"} if taken and done else {}


class JsonLines:
    """Prints a run as JSON, one object per line: the lines of metrics.jsonl."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def step(self, step: int, metrics: Metrics) -> None:
        self._line({"step": step, "train": metrics})

    def evaluation(self, step: int, metrics: Metrics) -> None:
        self._line({"step": step, "eval": metrics})

    def event(self, step: int, kind: str, text: str) -> None:
        self._line({"step": step, "event": {"kind": kind, "text": text}})

    def _line(self, row: Mapping[str, Any]) -> None:
        _print(self.console, json_line(row).rstrip())


def result_lines(console: Console, result: Result) -> None:
    """A finished run as lines: each metric before and after, why it stopped, and the output's paths."""
    for name, before in headline(result.before).items():
        told = {"before": before, "after": result.after.get(name), "best": result.best.get(name)}
        cells = [f"{key}={format_value(name, value)}" for key, value in told.items() if value is not None]
        _print(console, " ".join(["result", f"metric={name}", *cells]))
    if result.stopped_by:
        _print(console, f"stopped by={result.stopped_by} text={_quoted(result.reason)}")
    _print(console, f"done steps={result.steps} seconds={result.seconds:.0f} out={result.out}")


def _values(metrics: Metrics) -> dict[str, str]:
    return {name: format_value(name, value) for name, value in metrics.items()}


def _quoted(text: str) -> str:
    return json.dumps(sentence(text), ensure_ascii=False)


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
