"""Rewards as numbers, and what an observation says about its rollout."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from opd.errors import DataError, OpdError
from opd.types import Observation, Prompt, Rollout

TASK = "task"
"""Name of a task's own number among ``Rollout.rewards``."""


@runtime_checkable
class BatchTask(Protocol):
    """A task whose rewards need all rollouts of a batch at once, such as a task with a judge."""

    def rewarded(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The same rollouts, in order, with ``reward`` and ``rewards``."""
        ...


class Verdict(NamedTuple):
    """The fields of a rollout that say how good it is."""

    reward: float | None = None
    correct: bool | None = None
    rewards: Mapping[str, float | None] = {}


NO_VERDICT = Verdict()


def as_reward(given: Any, giver: str, prompt: Prompt) -> float | None:
    """A reward as a float: a number of Python, a decimal, a number of numpy or torch; None stays None.

    Raises:
        DataError: it is no finite number; the sentence names what gave it and the prompt.
    """
    if given is None:
        return None
    try:
        item = getattr(given, "item", None)
        value = item() if callable(item) else given
    except (ValueError, RuntimeError, TypeError):  # an array or a tensor of several numbers
        value = given
    if not isinstance(value, Real | Decimal):
        raise DataError(
            f"{giver} gave {given!r} as the reward of prompt '{prompt.id}', which is no number. Fix: return a number, "
            "or None for no reward"
        )
    if not math.isfinite(value := _float(value)):
        raise DataError(
            f"{giver} gave {value} as the reward of prompt '{prompt.id}'. Fix: return a finite number, or None "
            "for no reward"
        )
    return value


def _float(value: Real | Decimal) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number or a fraction beyond every float
        return math.inf


@contextmanager
def users_code(name: str, prompt: Prompt, *, fix: str) -> Iterator[None]:
    """Run a user's function; whatever it raises becomes one sentence.

    Args:
        name: the run file's key and the function, for the sentence.
        fix: what to do about it.

    Raises:
        DataError: the function raised; the sentence names it, the place and the prompt.
    """
    try:
        yield
    except OpdError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's function raises
        raise DataError(f"{name} {_raised(error)} on prompt '{prompt.id}'. Fix: {fix}") from error


def _raised(error: BaseException) -> str:
    """What was raised and where."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}".rstrip(" :.")
    return f"raised {reason} ({Path(place.filename).name}, line {place.lineno})"


def verdict(seen: Observation) -> Verdict:
    """The verdict on a rollout that ended with this observation."""
    if seen.reward is not None:
        return Verdict(seen.reward, seen.correct, {TASK: seen.reward})
    return Verdict() if seen.correct is None else Verdict(float(seen.correct), seen.correct)


def when_cut_off(seen: Observation) -> Verdict:
    """The verdict on a rollout that was cut off at this observation.

    An answer that would be right or wrong is wrong. A task's own number counts as it is. An episode that the
    environment wanted to continue, and said nothing about, has the reward 0.
    """
    if seen.correct is None and seen.reward is None:
        return Verdict() if seen.message is None else Verdict(0.0, None, {TASK: 0.0})
    now = verdict(seen)
    if now.correct is None:
        return now
    return now._replace(correct=False, reward=now.reward if now.rewards else 0.0)
