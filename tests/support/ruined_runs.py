"""Ways to ruin a run of bundled models: docs/recovery.md measures them, the tests run shorter ones."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import opd
from opd.loop import Loop
from opd.models.language import LanguageModel, stop_ids
from opd.signals import FullSignal
from opd.training.state import State
from opd.types import Rollout, Segment, Teacher
from support.altered import train_altered

FIXED = {
    "eval.prompts.limit": 128,
    "eval.every": 10,
    "eval.diagnostics": 0,
    "checkpoint.every": 5,
    "log": [],
}
RECOVER: dict[str, Any] = {"guards.recover": {}}
GUARDS_OFF = {"guards.drop": 1.0, "guards.below_start": 1.0, "guards.max_idle": 1000}

Strike = Callable[[LanguageModel, Sequence[Rollout], FullSignal], FullSignal]
"""What happens to the student and to what its teacher says of some rollouts."""


@dataclass
class Saboteur:
    """A teacher that does harm for a while.

    Args:
        teacher: gives the signal.
        student, state: of the run.
        strike: the harm.
        first, last: steps between which it is done.
    """

    teacher: Teacher
    student: LanguageModel
    state: State
    strike: Strike
    first: int
    last: int

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> FullSignal:
        signal = self.teacher.score(rollouts, segments)
        assert isinstance(signal, FullSignal)
        now = self.first <= self.state.step <= self.last
        return self.strike(self.student, rollouts, signal) if now else signal


def sabotaged(loop: Loop, *, strike: Strike, first: int, last: int) -> Loop:
    """The loop with a saboteur as its main teacher."""
    assert isinstance(loop.student, LanguageModel)
    main, *others = loop.terms
    saboteur = Saboteur(main.teacher, loop.student, loop.state, strike, first, last)
    return dataclasses.replace(loop, terms=[dataclasses.replace(main, teacher=saboteur), *others])


def no_number(student: LanguageModel, rollouts: Sequence[Rollout], signal: FullSignal) -> FullSignal:
    """What the teacher says is not a number."""
    return dataclasses.replace(signal, hidden_TD=signal.hidden_TD * math.nan)


@torch.no_grad()
def broken_memory(student: LanguageModel, rollouts: Sequence[Rollout], signal: FullSignal) -> FullSignal:
    """One of the student's weights is not a number."""
    next(iter(student.model.parameters())).view(-1)[0] = math.nan
    return signal


def repetition(student: LanguageModel, rollouts: Sequence[Rollout], signal: FullSignal) -> FullSignal:
    """The teacher likes the token best that stands there already."""
    before = [rollouts[r].completion_ids[max(p - 1, 0)] for r, p in _positions(signal)]
    identity_VV = torch.eye(len(signal.head_VD), dtype=signal.head_VD.dtype)
    return _with_logits(signal, identity_VV[before], 20 * identity_VV)


def no_end(student: LanguageModel, rollouts: Sequence[Rollout], signal: FullSignal) -> FullSignal:
    """The teacher never wants to stop."""
    bias_V1 = torch.zeros(len(signal.head_VD), 1, dtype=signal.head_VD.dtype)
    bias_V1[sorted(stop_ids(student))] = -20
    return _with_logits(signal, torch.ones(len(signal), 1, dtype=bias_V1.dtype), bias_V1)


def _with_logits(signal: FullSignal, hidden_TE: torch.Tensor, head_VE: torch.Tensor) -> FullSignal:
    """The teacher's logits and hidden_TE @ head_VE.T."""
    hidden_TD, head_VD = torch.cat([signal.hidden_TD, hidden_TE], 1), torch.cat([signal.head_VD, head_VE], 1)
    return dataclasses.replace(signal, hidden_TD=hidden_TD, head_VD=head_VD)


def _positions(signal: FullSignal) -> list[tuple[int, int]]:
    return list(zip(signal.rollout_T.tolist(), signal.position_T.tolist(), strict=True))


@dataclass(frozen=True)
class Scenario:
    """A way to ruin a run.

    Attributes:
        recipe, overrides: the run.
        strike: what happens to it on the way.
        first, last: the steps after which it begins and ends, both included.
    """

    recipe: str
    overrides: Mapping[str, Any]
    strike: Strike | None = None
    first: int = 12
    last: int = 10**6


INJECTED = (no_number, broken_memory)
"""What does its harm at once."""

LONG = {"rollout.max_new_tokens": 128, "eval.max_new_tokens": 128, "optimizer.steps": 40}

SCENARIOS = {
    "live teacher, no anchor": Scenario("hint", {"teacher.weights": "live", "loss.anchor": 0.0, "optimizer.steps": 70}),
    "learning rate × 100": Scenario("opd", {"optimizer.lr": 0.3, "optimizer.steps": 40}),
    "the teacher rewards repetition": Scenario("opd", {"loss.divergence": "jsd", **LONG}, repetition),
    "the teacher wants no end": Scenario("opd", LONG, no_end),
    "a batch that is not a number": Scenario("opd", {"optimizer.steps": 40}, no_number, last=12),
    "teacher out of order for 12 steps": Scenario("opd", {"optimizer.steps": 40}, no_number, last=23),
    "weights that are not a number": Scenario("opd", {"optimizer.steps": 40}, broken_memory, last=12),
}


def run(scenario: Scenario, folder: Path, overrides: Mapping[str, Any]) -> opd.Result:
    """One run in a folder of its own."""
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    keys = {**FIXED, **scenario.overrides, **overrides, "out": str(out)}
    if scenario.strike is None:
        return opd.train(scenario.recipe, keys)
    alter = partial(sabotaged, strike=scenario.strike, first=scenario.first, last=scenario.last)
    return train_altered(alter, scenario.recipe, keys)


def curve(result: opd.Result) -> dict[int, float]:
    """Accuracy of the rollouts of each step."""
    rows = [json.loads(line) for line in (result.out / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train"]["accuracy"] for row in rows if "accuracy" in row.get("train", {})}


def onset(accuracies: Mapping[int, float], prompts: int) -> int:
    """The step after the last that came to within three standard errors of the best."""
    best = max(accuracies.values())
    share = (best * prompts + 2) / (prompts + 4)
    near = best - 3 * math.sqrt(share * (1 - share) / prompts)
    return max(step for step, accuracy in accuracies.items() if accuracy >= near) + 1
