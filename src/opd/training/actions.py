"""What a guard, or the recovery, tells the loop to do next. The loop alone acts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NORMAL_ENDS = frozenset({None, "idle", "no_gain"})
"""Ends of a run that no rollback prevents: its last step, nothing left to learn, and no further gain."""


@dataclass(frozen=True)
class Continue:
    """Nothing is wrong."""


@dataclass(frozen=True)
class Stop:
    """End the run after this step.

    Attributes:
        guard: the name in ``result.json``, for instance ``collapse``.
        text: one sentence with the values that were seen.
    """

    guard: str
    text: str


@dataclass(frozen=True)
class RollBack:
    """Restore the newest checkpoint of a step or before; the step counter continues.

    Attributes:
        step: the last step whose weights are known to be good.
        then: the rest of the event's sentence, after "back to the weights of step N".
        resume: whether the run continues from there, or ends with the restored weights.
        lr_scale: factor on the learning rate from now on.
        weights: weights of loss terms from now on, by name.
    """

    step: int
    then: str
    resume: bool = True
    lr_scale: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RefreshTeacher:
    """Copy the student's weights into the averaged teacher."""

    text: str


Action = Continue | Stop | RollBack | RefreshTeacher
