"""Rewards by a user's function, and the task that adds up several rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from opd.errors import DataError
from opd.rewards.reactions import TASK, as_reward, users_code
from opd.types import Message, Observation, Prompt, Rollout, Task

RewardFunction = Callable[[str, str, Mapping[str, Any]], Any]
"""``(prompt, completion, row) -> number``; None for no reward."""


class Reward(Protocol):
    """Gives a number to each rollout of a batch."""

    @property
    def name(self) -> str:
        """Its key in ``Rollout.rewards``, and in metrics."""
        ...

    @property
    def always(self) -> bool:
        """Whether it applies to every prompt."""
        ...

    def __call__(self, rollouts: Sequence[Rollout]) -> Sequence[float | None]:
        """One per rollout, in order; None for no reward."""
        ...


@dataclass(frozen=True)
class OwnCheck:
    """The prompts' own check: the reward of their task, or 1 for a right answer and 0 for a wrong one."""

    name: str = TASK
    always: ClassVar[bool] = False

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """The rewards that the rollouts have."""
        return [rollout.reward for rollout in rollouts]


@dataclass(frozen=True)
class FromFunction:
    """A user's function, called for each rollout by itself.

    Attributes:
        named: the function as the run file names it, for errors.
    """

    name: str
    function: RewardFunction
    named: str
    always: ClassVar[bool] = False

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """One reward per rollout.

        Raises:
            DataError: the function raised an error, or gave no finite number.
        """
        return [self._one(rollout) for rollout in rollouts]

    def _one(self, rollout: Rollout) -> float | None:
        prompt, completion = rollout.prompt, rollout.transcript[-1]["content"] if rollout.transcript else ""
        name = f"prompts.reward: {self.named}"
        with users_code(name, prompt, fix="correct the function"):
            given = self.function(question(prompt), completion, row(prompt))
        return as_reward(given, name, prompt)


class RewardedTask:
    """A task whose rollouts get the weighted sum of several rewards; right and wrong stay as the task says.

    A function that gives None for all rollouts of a prompt does not apply to it and is left out of the sum. A reward
    that is None for some of them leaves those without any, since their sum could not be compared.

    Args:
        task: the prompts' own environment and check; None for neither.
        rewards: with their weights.
    """

    def __init__(self, task: Task | None, rewards: Sequence[tuple[Reward, float]]) -> None:
        self.task = task
        self.rewards = rewards

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The task's own prompts.

        Raises:
            DataError: there is no task.
        """
        if self.task is None:
            raise DataError(f"a reward function has no prompts, so no split '{split}'. Fix: give prompts.path")
        return self.task.prompts(split)

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        """The task's own reaction."""
        return self.task.step(prompt, transcript) if self.task else Observation()

    def rewarded(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rollouts with the sum of their rewards."""
        given = {reward.name: reward(rollouts) for reward, _ in self.rewards}
        weights = {reward.name: weight for reward, weight in self.rewards}
        applies = {
            (rollout.prompt.id, reward.name)
            for reward, _ in self.rewards
            for rollout, value in zip(rollouts, given[reward.name], strict=True)
            if value is not None or reward.always
        }
        found = []
        for n, rollout in enumerate(rollouts):
            each = {name: values[n] for name, values in given.items()}
            terms = [(value, weights[name]) for name, value in each.items() if (rollout.prompt.id, name) in applies]
            known = [value * weight for value, weight in terms if value is not None]
            total = sum(known) if known and len(known) == len(terms) else None
            found.append(replace(rollout, reward=total, rewards=each))
        return found


def question(prompt: Prompt) -> str:
    """What a reward function gets as the prompt: the text, or the last user message's."""
    asked = [message for message in prompt.messages or () if message["role"] == "user"]
    return prompt.text if prompt.text is not None else text_of(asked[-1]) if asked else ""


def row(prompt: Prompt) -> dict[str, Any]:
    """The prompt's row: all of its columns, with ``answer`` as a list if there are several."""
    own = {"messages": [dict(m) for m in prompt.messages]} if prompt.messages is not None else {"prompt": prompt.text}
    answer = list(prompt.answers) if prompt.other_answers else prompt.answer
    return {**prompt.data, **own, "id": prompt.id, "answer": answer, "domain": prompt.domain}


def text_of(message: Message) -> str:
    """A message's text; of several parts, one after the other."""
    content: Any = message.get("content") or ""
    return content if isinstance(content, str) else "".join(p if isinstance(p, str) else p["text"] for p in content)
