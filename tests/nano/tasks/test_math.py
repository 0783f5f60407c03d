"""The math task: working, answer check, and disjoint splits."""

from __future__ import annotations

import pytest

from opd.errors import ConfigError
from opd.nano.tasks.drawn import SPLITS
from opd.nano.tasks.math import MathTask, working
from opd.types import Prompt

TASK = MathTask()


def reward(text: str, result: int) -> float | None:
    return TASK.step(Prompt(id="m", data={"result": result}), [{"role": "assistant", "content": text}]).correct


def test_the_working_starts_at_the_last_digit() -> None:
    steps = "7 + 8 + 0 = 5 carry 1; 4 + 5 + 1 = 0 carry 1; 3 + 0 + 1 = 4 carry 0; answer 405"
    assert working(347, 58) == steps


def test_a_last_carry_becomes_a_digit() -> None:
    assert working(99, 11) == "9 + 1 + 0 = 0 carry 1; 9 + 1 + 1 = 1 carry 1; answer 110"


@pytest.mark.parametrize("split", ["val", "test"])
def test_reference_answers_get_the_reward(split: str) -> None:
    assert all(reward(p.answer or "", p.data["result"]) == 1.0 for p in TASK.prompts(split))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("answer 4 0 5<|im_end|>", 1.0),
        ("answer 1 then answer 405", 1.0),
        ("answer 405 then answer 1", 0.0),
        ("405", 0.0),
        (f"answer {'9' * 5000}", 0.0),
        ("answer", 0.0),
        ("", 0.0),
    ],
)
def test_only_the_last_answer_is_checked(text: str, expected: float) -> None:
    assert reward(text, 405) == expected


def test_splits_have_their_sizes_and_share_no_pair() -> None:
    pairs = []
    for name, size in SPLITS.items():
        prompts = TASK.prompts(name)
        assert len(prompts) == size
        pairs += [frozenset((p.data["a"], p.data["b"])) for p in prompts]
    assert len(set(pairs)) == len(pairs)


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no split 'dev'"):
        TASK.prompts("dev")
