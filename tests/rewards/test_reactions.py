"""What tasks and reward functions may give, and what counts when a rollout is cut off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch

from opd.data.tasks import observe
from opd.errors import ConfigError, DataError
from opd.evaluation.metrics import summarise
from opd.models.chat import Chat
from opd.models.language import stop_ids
from opd.rewards.reactions import as_reward, verdict, when_cut_off
from opd.rollouts.sampler import Sampler
from opd.types import Generation, Message, Observation, Prompt
from support.models import make_model

PROMPT = Prompt(id="p7", messages=({"role": "user", "content": "a"},))
MESSAGE: Message = {"role": "user", "content": "b"}


class Gives:
    """A task that gives the same observation to every turn, or raises it."""

    def __init__(self, seen: Any) -> None:
        self.seen = seen

    def prompts(self, split: str) -> Sequence[Prompt]:
        return [PROMPT]

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        if isinstance(self.seen, BaseException):
            raise self.seen
        return self.seen


@pytest.mark.parametrize(
    ("given", "reward"),
    [
        (None, None),
        (1, 1.0),
        (True, 1.0),
        (-2.5, -2.5),
        (numpy.float32(0.5), 0.5),
        (numpy.int64(3), 3.0),
        (numpy.array([2.0]), 2.0),
        (torch.tensor(0.25), 0.25),
        (torch.tensor([4]), 4.0),
        (torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True), 0.5),
        (Fraction(1, 2), 0.5),
        (Decimal("0.5"), 0.5),
    ],
)
def test_numbers_are_numbers(given: Any, reward: float | None) -> None:
    found = as_reward(given, "f", PROMPT)
    assert found == reward
    assert found is None or type(found) is float


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("1.0", "f gave '1.0' as the reward of prompt 'p7', which is no number. Fix: return a number"),
        ([1.0], r"f gave \[1.0\] as the reward"),
        (torch.tensor([1.0, 2.0]), "which is no number"),
        (numpy.array([1.0, 2.0]), "which is no number"),
        ({"reward": 1}, "which is no number"),
        (1j, "which is no number"),
        (math.nan, "f gave nan as the reward of prompt 'p7'. Fix: return a finite number, or None"),
        (torch.tensor(math.inf), "f gave inf as the reward of prompt 'p7'"),
        (numpy.float32("-inf"), "f gave -inf"),
        (10**400, "f gave inf"),
        (Decimal("NaN"), "f gave nan"),
    ],
)
def test_anything_else_is_one_sentence(given: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        as_reward(given, "f", PROMPT)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (KeyError("answer"), "Gives.step raised KeyError: 'answer' .* on prompt 'p7'. Fix"),
        (ValueError(), "Gives.step raised ValueError .*on prompt 'p7'"),
        (SystemExit(3), "Gives.step raised SystemExit: 3 .*on prompt 'p7'"),
        ({"reward": 1.0}, "Gives.step returned .* on prompt 'p7'. Fix: return opd.Observation"),
        (None, "Gives.step returned None"),
        (Observation(reward="1"), "Gives.step gave '1' as the reward"),  # type: ignore[arg-type]
        (Observation(reward=math.nan), "Gives.step gave nan"),
    ],
)
def test_a_users_mistake_in_a_task_is_one_sentence(seen: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        observe(Gives(seen), PROMPT, [])
    with pytest.raises(ConfigError, match="mine"):
        observe(Gives(ConfigError("mine")), PROMPT, [])


@pytest.mark.parametrize(
    ("seen", "whole", "cut"),
    [
        (Observation(), (None, None), (None, None)),
        (Observation(correct=True), (1.0, True), (0.0, False)),
        (Observation(correct=False), (0.0, False), (0.0, False)),
        (Observation(reward=-2.0), (-2.0, None), (-2.0, None)),
        (Observation(reward=0.3, correct=True), (0.3, True), (0.3, False)),
        (Observation(message=MESSAGE), (None, None), (0.0, None)),
        (Observation(message=MESSAGE, correct=False), (0.0, False), (0.0, False)),
        (Observation(message=MESSAGE, reward=-1.0), (-1.0, None), (-1.0, None)),
    ],
)
def test_a_cut_off_answer_counts_as_the_task_says(seen: Observation, whole: Any, cut: Any) -> None:
    assert verdict(seen)[:2] == whole
    assert when_cut_off(seen)[:2] == cut


class Endless:
    """An engine that never stops."""

    def generate(self, contexts: Sequence[Sequence[int]], max_new_tokens: Sequence[int], **_: Any) -> list[Generation]:
        return [Generation((5,) * n, (-1.0,) * n, stopped=False) for n in max_new_tokens]

    def sync(self) -> None: ...


@pytest.mark.parametrize(
    ("seen", "metrics"),
    [
        (Observation(reward=-2.0), {"reward": -2.0}),
        (Observation(reward=numpy.float32(-2.0)), {"reward": -2.0}),  # type: ignore[arg-type]
        (Observation(correct=True), {"accuracy": 0.0}),
        (Observation(reward=0.5, correct=True), {"accuracy": 0.0, "reward": 0.5}),
    ],
)
def test_a_reward_is_no_accuracy(seen: Observation, metrics: dict[str, float]) -> None:
    model = make_model(0)
    sampler = Sampler(
        Endless(), Chat(model.tokenizer), Gives(seen), stop_ids=stop_ids(model), max_new_tokens=4, max_turns=1
    )
    found = summarise(sampler.rollout([PROMPT], 0))
    assert {k: v for k, v in found.items() if k in ("accuracy", "reward")} == metrics
