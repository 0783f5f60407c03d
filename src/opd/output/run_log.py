"""Where a run's metrics go: metrics.jsonl always, trackers if installed, callbacks, and the report's recorder."""

from __future__ import annotations

import importlib
import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from opd.config.secrets import redact_sentence
from opd.data.strict_json import lines
from opd.output.callbacks import RunStart, tell
from opd.output.run_folder import json_line
from opd.types import Metrics, Rollout, Scored

OF_PROCESSES = frozenset({"tracker", "prompts", "provenance", "damaged"})
"""Kinds of events that tell of a process, not of a step; a resume makes none of them again."""

PROJECT = "opd"
"""Project that W&B and trackio file runs under."""


class Log(Protocol):
    """Receives everything the loop does."""

    def scored(self, step: int, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> None: ...

    def step(self, step: int, metrics: Metrics) -> None: ...

    def evaluation(self, step: int, metrics: Metrics) -> None: ...

    def event(self, step: int, kind: str, text: str) -> None: ...


class Observer(Protocol):
    """Reads each batch with its signals before the update, for the report; it changes nothing."""

    def scored(self, step: int, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> None:
        """The batch of this step."""
        ...


class Sink(Protocol):
    """A tracker such as TensorBoard."""

    def scalars(self, step: int, metrics: Metrics) -> None:
        """Metrics of one step, with names such as ``train/loss`` and ``eval/accuracy``."""
        ...

    def close(self) -> None: ...


class RunLog:
    """Writes metrics.jsonl and passes everything on to trackers, callbacks and observers.

    A line is ``{"step": 20, "train": {...}}``, ``{"step": 20, "eval": {...}}`` or
    ``{"step": 20, "event": {"kind": ..., "text": ...}}``. A metric that is not finite is null there, which JSON has
    no other way to write, and an event names it the first time.

    Args:
        path: ``out/metrics.jsonl``; None to write nothing.
        sinks: trackers.
        warnings: sentences that become events when the run starts.
        callbacks: for instance the terminal's.
    """

    def __init__(
        self, path: Path | None, sinks: Sequence[Sink] = (), warnings: Sequence[str] = (), callbacks: Sequence[Any] = ()
    ) -> None:
        self.path = path
        self.sinks = list(sinks)
        self.callbacks = list(callbacks)
        self.not_finite: set[str] = set()
        self.observers: list[Observer] = []
        self.warnings = list(warnings)
        self.notes: list[str] = []
        """Sentences about the prompts, which become events of step 0."""

    def attach(self, recorder: Any) -> None:
        """Add an object that is an observer and a callback; it comes before all other callbacks."""
        self.observers.append(recorder)
        self.callbacks.insert(0, recorder)

    def start(self, run: RunStart, *, evaluated: bool, events: Sequence[Mapping[str, Any]] = ()) -> None:
        """Drop the lines after the step the run resumes from, and start the callbacks.

        Args:
            evaluated: whether the run has been evaluated at step 0, so that lines of step 0 stay.
            events: of the loop, up to that step.
        """
        if self.path:
            rewind(self.path, run.step if evaluated or run.step else -1, events)
        tell(self.callbacks, "start", run)
        for text in self.warnings:
            self.event(run.step, "tracker", text)
        for text in () if evaluated or run.step else self.notes:
            self.event(run.step, "prompts", text)

    def rewind(self, step: int) -> None:
        """Drop the lines after a step; all of them for -1."""
        if self.path:
            rewind(self.path, step)

    def scored(self, step: int, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> None:
        """Rollouts of a step and their signals."""
        for observer in self.observers:
            observer.scored(step, rollouts, scored)

    def step(self, step: int, metrics: Metrics) -> None:
        """Metrics of a training step."""
        self._write({"step": step, "train": metrics})
        for sink in self.sinks:
            sink.scalars(step, {f"train/{k}": v for k, v in metrics.items()})
        tell(self.callbacks, "step", step, metrics)
        self._name_not_finite(step, metrics)

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """Metrics on held-out prompts."""
        self._write({"step": step, "eval": metrics})
        for sink in self.sinks:
            sink.scalars(step, {f"eval/{k}": v for k, v in metrics.items()})
        tell(self.callbacks, "evaluation", step, metrics)
        self._name_not_finite(step, metrics)

    def event(self, step: int, kind: str, text: str) -> None:
        """A guard's finding, a rollback, a warning."""
        self._write({"step": step, "event": {"kind": kind, "text": text}})
        tell(self.callbacks, "event", step, kind, text)

    def stop(self) -> None:
        """Close the trackers and stop the callbacks."""
        for sink in self.sinks:
            sink.close()
        tell(self.callbacks, "stop")

    def _name_not_finite(self, step: int, metrics: Metrics) -> None:
        new = {name for name, value in metrics.items() if not math.isfinite(value)} - self.not_finite
        if new:
            self.not_finite |= new
            self.event(step, "not_finite", f"not a finite number, written as null: {', '.join(sorted(new))}")

    def _write(self, line: dict[str, Any]) -> None:
        if self.path:
            with self.path.open("a") as file:
                file.write(json_line(line))


def open_sinks(
    names: Sequence[str], folder: Path, config: dict[str, Any], *, project: str = PROJECT
) -> tuple[list[Sink], list[str]]:
    """Open the trackers that the run file names.

    Args:
        names: of ``log`` in the run file.
        folder: the run's; its name is the run's name.
        config: the resolved run file.

    Returns:
        The trackers, and one sentence for each that is not installed or could not be started.
    """
    sinks, warnings = [], []
    for name in names:
        if find_spec(name) is None:
            warnings.append(f"log: {name} is not installed, so it records nothing. Fix: pip install {name}")
            continue
        try:
            sinks.append(_OPEN[name](name, folder, config, project))
        except Exception as error:  # a tracker's own errors must not end a run
            warnings.append(
                f"log: {name} could not be started ({redact_sentence(str(error))}), so it records nothing. Fix: "
                "configure it, or remove it from log"
            )
    return sinks, warnings


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, step: int, metrics: Metrics) -> None:
        for key, value in metrics.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class _Tracker:
    """Weights & Biases, or trackio, which has the same calls.

    Args:
        settings: arguments of ``init``.
    """

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.package = importlib.import_module(name)
        self.package.init(**settings)

    def scalars(self, step: int, metrics: Metrics) -> None:
        self.package.log(dict(metrics), step=step)

    def close(self) -> None:
        self.package.finish()


def _tensorboard(name: str, folder: Path, config: dict[str, Any], project: str) -> Sink:
    return _TensorBoard(folder)


def _trackio(name: str, folder: Path, config: dict[str, Any], project: str) -> Sink:
    """trackio knows a run by its name."""
    return _Tracker(name, {"project": project, "name": folder.name, "config": config, "resume": "allow"})


def _wandb(name: str, folder: Path, config: dict[str, Any], project: str) -> Sink:
    """W&B knows a run by its id, which the run's folder keeps, so that a resumed run continues the same curves."""
    path = folder / "wandb.json"
    if not path.exists():
        path.write_text(json.dumps({"id": uuid.uuid4().hex}))
    kept = json.loads(path.read_text())["id"]
    settings = {"project": project, "name": folder.name, "config": config, "id": kept, "resume": "allow"}
    return _Tracker(name, settings)


_OPEN: dict[str, Callable[[str, Path, dict[str, Any], str], Sink]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}


def rewind(path: Path, step: int, events: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Keep the lines of a JSONL file that belong to this step or an earlier one, byte for byte.

    Args:
        events: of the loop, up to this step. An event of the update that follows has this step's number too; it is
            dropped, as the update is made again. None keeps all.
    """
    if not path.exists():
        return
    known = {(event["step"], event["kind"], event["text"]) for event in events or ()}
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        for _, line in lines(path):
            found, event = _place(line)
            again = events is not None and found == step and event is not None and event[0] not in OF_PROCESSES
            if found is not None and found <= step and not (again and (found, *(event or ())) not in known):
                file.write(line.removesuffix(b"\n") + b"\n")
    partial.replace(path)


def _place(line: bytes) -> tuple[int | None, tuple[str, str] | None]:
    """The step of a line, None for one that a kill cut short, and its event's kind and text, None for metrics."""
    try:
        row = json.loads(line)
        event = row.get("event")
        return int(row["step"]), (event["kind"], event["text"]) if event else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, None
