"""Recorded metrics of a run, read by the guards as they would be in the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opd.training.actions import Stop
from opd.training.guards import WINDOW, Guards, Watch, better, validation
from opd.training.recovery import Recovery
from opd.training.state import State
from opd.types import Term

PROMPTS = 96
"""Held-out prompts of the recorded evaluations."""


@dataclass(frozen=True)
class Seen:
    """What the guards made of a run.

    Attributes:
        fell: the first evaluation after the warm-up that looks collapsed; None for none.
        stopped: the step at which the run would have been stopped; None if it goes on.
        kept: the step of the weights that it would end with.
    """

    fell: int | None = None
    stopped: int | None = None
    kept: int = 0


def by_evaluations(recorded: Mapping[str, Any]) -> Seen:
    """With held-out prompts."""
    guards = Guards(warmup=recorded["warmup"], num_prompts=PROMPTS)
    before: dict[str, float] = {}
    best: dict[str, float] = {}
    previous: dict[str, float] = {}
    count, fell, kept = 0.0, None, 0
    for step, metrics in recorded["evals"]:
        before = before or metrics
        if not best or better(metrics, best):
            best, kept = metrics, step
        seen = guards.collapsed(before, best, metrics)
        count = guards.counted(count, seen, step=step, previous=previous, best=best, now=metrics)
        previous = metrics
        if seen and step > recorded["warmup"]:
            fell = step if fell is None else fell
        if isinstance(guards.after_evaluation(seen, count, best_step=kept, last=step == recorded["steps"]), Stop):
            return Seen(fell, step, kept)
    return Seen(fell, None, kept)


def by_rollouts(recorded: Mapping[str, Any], terms: Sequence[Term], *, rewarded: bool = True) -> Seen:
    """Without held-out prompts, and without rewards if asked."""
    least = max(2 * WINDOW, recorded["warmup"])
    guard, state = Recovery(Watch(prompts=recorded["prompts"], least=least), times=0), State()
    for step, metrics in recorded["rollouts"]:
        state.step = step
        shown = {k: v for k, v in metrics.items() if rewarded or k not in ("accuracy", "reward")}
        if isinstance(guard.after_step(state, shown, terms), Stop):
            return Seen(None, step, state.healthy)
    return Seen(None, None, state.healthy)


def compact(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the guards read of the lines of a run, with three digits."""
    lines = record["lines"]
    judged = validation(next(line["eval"] for line in lines if "eval" in line))
    assert judged is not None
    read = ("accuracy", "reward", "distill", "distill_share", "entropy", "length", "repetition_rate", "truncation_rate")

    def brief(metrics: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
        return {name: float(f"{metrics[name]:.3g}") for name in names if metrics.get(name) is not None}

    return {
        **record["settings"],
        "recipe": record["recipe"],
        "evals": [[line["step"], brief(line["eval"], judged[:1])] for line in lines if "eval" in line],
        "rollouts": [[line["step"], brief(line["train"], read)] for line in lines if "train" in line],
    }
