"""Callbacks: objects that follow a run. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd.errors import ConfigError
from opd.types import Metrics


@dataclass(frozen=True)
class RunStart:
    """The facts about a run that a callback may need.

    Attributes:
        out: the run's folder.
        step: steps already taken; above 0 if the run is resumed.
        steps: steps in all.
        evaluates: whether anything is measured on held-out prompts.
        settings: which of the recipe's settings apply, as a sentence; empty for a run without a recipe.
        images: images that the student draws in a step; 0 for a language model.
    """

    out: Path
    step: int
    steps: int
    evaluates: bool
    settings: str = ""
    images: int = 0


class Callback:
    """Follows a run: ``opd.train(..., callbacks=[...])``.

    Every method may be left out; any object with at least one of them is a callback. A callback reads metrics and can
    change nothing. What it raises ends the run.

    Example:
        class Curve(opd.Callback):
            def evaluation(self, step, metrics):
                print(step, metrics["accuracy"])
    """

    def start(self, run: RunStart) -> None:
        """Before the first step of this process."""

    def step(self, step: int, metrics: Metrics) -> None:
        """After each optimizer step; ``step`` counts from 1."""

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """After each evaluation on held-out prompts; step 0 is the one before training."""

    def event(self, step: int, kind: str, text: str) -> None:
        """A guard's finding, a rollback, a warning; ``text`` is a sentence."""

    def stop(self) -> None:
        """After the last step, or after an error."""


METHODS = ("start", "step", "evaluation", "event", "stop")


def tell(callbacks: Sequence[Any], method: str, *arguments: Any) -> None:
    """Call a method of every callback that has it."""
    for callback in callbacks:
        if (call := getattr(callback, method, None)) is not None:
            call(*arguments)


def check_callbacks(callbacks: Any) -> None:
    """Refuse what is no list of callbacks.

    Raises:
        ConfigError: an object has none of the methods, or is a class.
    """
    if not isinstance(callbacks, list | tuple):
        raise ConfigError(f"callbacks: a list of callbacks is needed (got {callbacks!r}). Fix: give a list")
    for number, callback in enumerate(callbacks):
        if isinstance(callback, type) or not any(callable(getattr(callback, name, None)) for name in METHODS):
            raise ConfigError(
                f"callbacks[{number}]: an object with at least one of {', '.join(f'{name}()' for name in METHODS)} is "
                f"needed (got {callback!r}). Fix: give an object of a class that has one"
            )
