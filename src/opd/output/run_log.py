"""Where a run's figures go: metrics.jsonl always, TensorBoard, W&B and trackio if installed, and a live display."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from opd.evaluation.metrics import Metrics
from opd.types import Rollout

if TYPE_CHECKING:
    from opd.loop import Scored

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


class Log(Protocol):
    """Where the loop writes what it sees."""

    def scored(self, step: int, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> None: ...

    def step(self, step: int, metrics: Metrics) -> None: ...

    def evaluation(self, step: int, metrics: Metrics) -> None: ...

    def event(self, step: int, kind: str, text: str) -> None: ...


class Sink(Protocol):
    """Somewhere figures go."""

    def scalars(self, step: int, figures: Metrics) -> None:
        """Figures of one step, with names such as ``train/loss`` and ``eval/accuracy``."""
        ...

    def close(self) -> None: ...


class Observer(Protocol):
    """Somebody who looks at rollouts and at what teachers said about them, before the step that they lead to."""

    def scored(self, step: int, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> None:
        """A batch of the weights that so many steps have made; nothing may be changed."""
        ...


class RunLog:
    """Writes metrics.jsonl and passes figures on.

    A line is ``{"step": 20, "train": {...}}``, ``{"step": 20, "eval": {...}}`` or
    ``{"step": 20, "event": {"kind": ..., "text": ...}}``.

    Args:
        path: ``out/metrics.jsonl``.
        sinks: further places.
        displays: objects with the methods of this class but ``scored``, for instance the terminal's.
        observers: look at rollouts.
    """

    def __init__(
        self, path: Path, sinks: Sequence[Sink], displays: Sequence[Any], observers: Sequence[Observer] = ()
    ) -> None:
        self.path = path
        self.sinks = sinks
        self.displays = displays
        self.observers = observers

    def rewind(self, step: int) -> None:
        """Forget what was written after a checkpoint that the run goes back to."""
        rewind(self.path, step)

    def scored(self, step: int, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> None:
        """Rollouts of a step and what teachers said about them."""
        for observer in self.observers:
            observer.scored(step, rollouts, scored)

    def step(self, step: int, metrics: Metrics) -> None:
        """Figures of a training step."""
        self._write({"step": step, "train": metrics})
        for sink in self.sinks:
            sink.scalars(step, {f"train/{k}": v for k, v in metrics.items()})
        for display in self.displays:
            display.step(step, metrics)

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """Figures on held-out prompts."""
        self._write({"step": step, "eval": metrics})
        for sink in self.sinks:
            sink.scalars(step, {f"eval/{k}": v for k, v in metrics.items()})
        for display in self.displays:
            display.evaluation(step, metrics)

    def event(self, step: int, kind: str, text: str) -> None:
        """Something a guard saw."""
        self._write({"step": step, "event": {"kind": kind, "text": text}})
        for display in self.displays:
            display.event(step, kind, text)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def open_sinks(names: Sequence[str], folder: Path, run_name: str, config: dict[str, Any]) -> list[Sink]:
    """The loggers that are installed."""
    makers: dict[str, Callable[[str, Path, str, dict[str, Any]], Sink]] = {
        "tensorboard": _TensorBoard,
        "wandb": _Tracker,
        "trackio": _Tracker,
    }
    return [makers[name](name, folder, run_name, config) for name in names if find_spec(PACKAGES[name]) is not None]


class _TensorBoard:
    def __init__(self, name: str, folder: Path, run_name: str, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, step: int, figures: Metrics) -> None:
        for key, value in figures.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class _Tracker:
    """Weights & Biases, or trackio, which has the same calls."""

    def __init__(self, name: str, folder: Path, run_name: str, config: dict[str, Any]) -> None:
        import importlib

        self.package = importlib.import_module(name)
        self.package.init(project="opd", name=run_name, config=config)

    def scalars(self, step: int, figures: Metrics) -> None:
        self.package.log(dict(figures), step=step)

    def close(self) -> None:
        self.package.finish()


def rewind(path: Path, step: int) -> None:
    """Keep the lines of a JSONL file that are about this step or one before."""
    if not path.exists():
        return
    lines = path.read_text().splitlines()
    kept = [line for line in lines if _step_of(line) is not None and (_step_of(line) or 0) <= step]
    path.write_text("".join(line + "\n" for line in kept))


def _step_of(line: str) -> int | None:
    """The step of a line; None for one that a kill cut short."""
    try:
        step: int = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step
