"""The strings task: operations, both needed, and only the correct list passes."""

from __future__ import annotations

import random

import pytest

from opd.errors import ConfigError
from opd.nano.tasks.drawn import SPLITS
from opd.nano.tasks.strings import LENGTHS, OPERATIONS, Program, StringsTask, draw
from opd.types import Prompt

TASK = StringsTask()
LETTERS = tuple("kbdaf")


def reward(text: str, result: str) -> float | None:
    prompt = Prompt(id="s", data={"result": tuple(result)})
    return TASK.step(prompt, [{"role": "assistant", "content": text}]).correct


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("reverse", "fadbk"),
        ("sort", "abdfk"),
        ("swap", "fbdak"),
        ("drop first", "bdaf"),
        ("drop last", "kbda"),
    ],
)
def test_operations(operation: str, expected: str) -> None:
    assert OPERATIONS[operation](LETTERS) == tuple(expected)


def test_the_second_operation_uses_the_result_of_the_first() -> None:
    program = Program("sort", "drop first", LETTERS)
    assert program.question == "sort then drop first: k b d a f"
    assert program.working == "a b d f k; answer b d f k"


def test_each_operation_changes_the_list_and_the_second_does_not_undo_the_first() -> None:
    rng = random.Random(0)
    programs = [draw(rng) for _ in range(1000)]
    for program in programs:
        assert len({program.letters, program.inner, program.result}) == 3
        assert len(set(program.letters)) == len(program.letters)
    assert {len(program.letters) for program in programs} == set(LENGTHS)
    same = {(name, name) for name in ("reverse", "sort", "swap")}
    assert {p[:2] for p in programs} == {(a, b) for a in OPERATIONS for b in OPERATIONS} - same


@pytest.mark.parametrize("split", ["val", "test"])
def test_reference_answers_get_the_reward_and_their_working_alone_does_not(split: str) -> None:
    for prompt in TASK.prompts(split):
        working, answer = (prompt.answer or "").split(";")
        result = "".join(prompt.data["result"])
        assert reward(prompt.answer or "", result) == reward(answer, result) == 1.0
        assert reward(working, result) == reward(f"answer {working}", result) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b d f k ; answer b d f k<|im_end|>", 1.0),
        ("answer a b then Answer B D F K", 1.0),
        ("answer b d f k then answer a b", 0.0),
        ("answer b d f k .", 0.0),
        ("answer b d f", 0.0),
        ("answer k f d b", 0.0),
        ("answer b d f k k", 0.0),
        ("answer bdfk", 0.0),
        ("b d f k", 0.0),
        ("answer", 0.0),
        ("", 0.0),
    ],
)
def test_only_the_whole_list_after_the_last_answer_is_checked(text: str, expected: float) -> None:
    assert reward(text, "bdfk") == expected


def test_splits_have_their_sizes_and_share_no_program() -> None:
    splits = {name: TASK.prompts(name) for name in SPLITS}
    assert {name: len(prompts) for name, prompts in splits.items()} == SPLITS
    questions = [(prompt.messages or ())[0]["content"] for prompts in splits.values() for prompt in prompts]
    assert len(set(questions)) == len(questions)


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"task 'strings' has no split 'dev'. Fix: use test, val, train"):
        TASK.prompts("dev")
