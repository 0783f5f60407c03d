"""``benchmarks/series.py``: several questions in one conversation."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from opd.types import Message, Observation, Prompt

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def played(prompt: Prompt, turns: list[str]) -> tuple[list[Message], Observation]:
    """The messages after a prompt, and the last observation."""
    from series import Series

    transcript: list[Message] = []
    observed = Observation()
    for turn in turns:
        transcript.append({"role": "assistant", "content": turn})
        observed = Series().step(prompt, transcript)
        transcript += observed.messages
    return transcript, observed


def solution(prompt: Prompt) -> list[str]:
    from opd.nano.tasks.tools import Expression, reference_turns

    tools = prompt.data["tools"]
    return [t for q in prompt.data["questions"] for t in reference_turns(Expression(*q.data["expression"]), tools)]


def test_the_next_question_follows_each_answer_and_all_have_to_be_right() -> None:
    from series import QUESTIONS, Series

    prompt = Series().prompts("test")[0]
    turns = solution(prompt)
    transcript, observed = played(prompt, turns)
    assert observed.message is None
    assert observed.correct is True
    asked = [m["content"] for m in transcript if m["role"] == "user"]
    assert asked == [q.messages[-1]["content"] for q in prompt.data["questions"][1:]]
    assert len(turns) == 3 * QUESTIONS
    _, observed = played(prompt, ["answer unknown", *turns[3:]])
    assert observed.message is None
    assert observed.correct is False


def test_an_invented_tool_is_an_event_of_its_turn_and_the_question_goes_on() -> None:
    from series import Series

    prompt = Series().prompts("test")[0]
    turns = solution(prompt)
    _, observed = played(prompt, [*turns[:3], "call multiply 1, 2"])
    assert [kind for kind, _ in observed.events] == ["unknown_tool"]
    _, observed = played(prompt, [*turns[:3], "call multiply 1, 2", *turns[3:]])
    assert observed.correct is True
    assert not observed.events


def test_prompts_differ_and_no_question_is_in_two_splits() -> None:
    from series import SPLITS, Series

    asked = {}
    for split, size in SPLITS.items():
        prompts = Series().prompts(split)
        assert (
            len({(str(p.data["tools"]), *(q.data["expression"] for q in p.data["questions"])) for p in prompts}) == size
        )
        asked[split] = {q.data["expression"] for p in prompts for q in p.data["questions"]}
    assert not asked["test"] & asked["train"]
    assert not asked["val"] & asked["train"]


def test_a_reminder_in_the_students_training_ends_trained_mistakes() -> None:
    from series import trace

    from opd.nano.tokenizer import HABITS

    invented = {name for names in HABITS.values() for name in names}
    before, after = 0, 0
    for seed in range(200):
        reminded = False
        for turn in trace(random.Random(seed)):
            reminded |= turn.text.startswith("Reminder")
            wrong = turn.role == "assistant" and not turn.skip and turn.text.split()[1] in invented
            before, after = before + (wrong and not reminded), after + (wrong and reminded)
    assert before > 100
    assert after == 0


@pytest.mark.slow
def test_the_student_is_built_from_the_bundled_one(tmp_path: Path) -> None:
    from series import build

    build(tmp_path, scale=0.005)
    assert (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "tokenizer.json").exists()
