"""From ``prompts.reward``, or ``opd.train(reward=…)``, to a task that gives these rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, cast

from opd.axes.base import GIVEN, imported
from opd.axes.context import RunContext
from opd.config.read import validate
from opd.config.reward import TASK, RewardConfig, check_function
from opd.errors import ConfigError
from opd.models.language import LanguageModel
from opd.models.loading import load
from opd.rewards.functions import FromFunction, OwnCheck, Reward, RewardedTask
from opd.rewards.judge import Asks, Judge
from opd.types import Task


@dataclass(frozen=True, kw_only=True)
class RewardBuilder:
    """Makes the rewards of a run; equal judges are loaded once.

    Attributes:
        device: of local judges.
        given: what ``opd.train`` got as ``reward``; None for nothing. It stands in for every reward of the run file.
    """

    device: str
    given: Any = None
    judges: dict[str, Asks] = field(default_factory=dict)

    def task(
        self, task: Task | None, configs: Sequence[RewardConfig] | None, *, key: str, held_out: bool = False
    ) -> Task | None:
        """A task with these rewards; as it is if there are none.

        Args:
            task: the prompts' own environment and check.
            configs: of ``prompts.reward``.
            key: its place in the run file, for errors.
            held_out: for evaluation, where each prompt has one answer, so that a judge has nothing to compare.

        Raises:
            OpdError: a function or a judge cannot be used.
        """
        asked: Sequence[Any] = configs or ()
        if self.given is not None:
            asked = self.given if isinstance(self.given, list | tuple) else [self.given]
        rewards: list[tuple[Reward, float]] = []
        for one in asked:
            reward, weight = self._one(one, task, [reward.name for reward, _ in rewards], key)
            if not (held_out and isinstance(reward, Judge) and reward.compare):
                rewards.append((reward, weight))
        return RewardedTask(task, rewards) if rewards else task

    def _one(self, given: Any, task: Task | None, taken: Sequence[str], key: str) -> tuple[Reward, float]:
        if isinstance(given, tuple) and len(given) == 2 and callable(given[0]):
            function, weight = given
            if not isinstance(weight, Real) or not math.isfinite(weight):
                raise ConfigError(f"reward: the weight of a function is {weight!r}. Fix: give a finite number")
            return _function(function, getattr(function, "__name__", "reward"), taken), float(weight)
        if callable(given):
            return _function(given, getattr(given, "__name__", "reward"), taken), 1.0
        if isinstance(given, str):
            given = {"function": given}
        if isinstance(given, Mapping):
            given = validate(RewardConfig, dict(given), at="reward")
        if not isinstance(given, RewardConfig):
            raise ConfigError(
                f"reward: a function is needed (got {given!r}). Fix: give a function, a pair (function, weight), or a "
                "list of these"
            )
        return self._configured(given, task, taken, key), given.weight

    def _configured(self, config: RewardConfig, task: Task | None, taken: Sequence[str], key: str) -> Reward:
        if config.judge is not None:
            assert config.rubric
            return Judge(
                name=_free("judge", taken),
                asks=self._judge(config, f"{key}.judge"),
                rubric=config.rubric,
                verdicts=config.verdicts,
                compare=config.compare,
                see_answer=config.judge.model_dump().get("see_answer", False),
            )
        assert config.function
        if config.function == GIVEN:
            raise ConfigError(f"{key}: opd.train got no reward. Fix: call opd.train(reward=…), or name a function")
        if config.function != TASK:
            return _function(imported(config.function), config.function, taken)
        if task is None:
            raise ConfigError(
                f"{key}: '{TASK}' stands for the prompts' own check, and they have none. Fix: give prompts with an "
                "answer or a task, or leave it out"
            )
        return OwnCheck(_free(TASK, taken))

    def _judge(self, config: RewardConfig, key: str) -> Asks:
        assert config.judge is not None
        name = config.judge.model_dump_json()
        if name not in self.judges:
            # The authors that can judge need nothing of a run but its loading of models.
            self.judges[name] = cast(Asks, config.judge.build(cast(RunContext, self), key))
        return self.judges[name]

    def load_model(self, name: str, *, key: str) -> LanguageModel:
        """A judge's model."""
        return load(name, key=key, device=self.device)


def _function(function: Callable[..., Any], named: str, taken: Sequence[str]) -> FromFunction:
    try:
        check_function(function, named)
    except ValueError as error:
        raise ConfigError(f"reward: {error}") from None
    return FromFunction(_free(named.rpartition(":")[2].rpartition(".")[2], taken), function, named)


def _free(name: str, taken: Sequence[str]) -> str:
    """The name, or the name with a number after it that is not taken."""
    return next(n for n in (name, *(f"{name}_{k}" for k in range(2, len(taken) + 3))) if n not in taken)
