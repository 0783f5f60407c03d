"""Reference answers as rollouts: what a correct student would have written, in the environment."""

from dataclasses import replace

import pytest

from opd.data.tasks import get_task
from opd.errors import DataError
from opd.models.chat import Chat
from opd.models.language import load, stop_ids
from opd.rollouts.references import ReferenceAnswers
from opd.types import Prompt

MODEL = load("nano/tools-base", key="student")
CHAT = Chat(MODEL.tokenizer)
TOOLS = get_task("tools")


def answers(task: object = TOOLS, max_length: int | None = None) -> ReferenceAnswers:
    return ReferenceAnswers(CHAT, task, stop=min(stop_ids(MODEL)), max_length=max_length)  # type: ignore[arg-type]


def test_a_solution_of_several_turns_is_played_in_its_environment() -> None:
    for rollout in answers().rollout(TOOLS.prompts("test")[:16], seed=0):
        assert rollout.reward == 1.0
        assert len(rollout.turns) == 3
        conversation = [*(rollout.prompt.messages or ()), *rollout.transcript]
        text = MODEL.tokenizer.apply_chat_template([dict(m) for m in conversation], tokenize=False)
        assert rollout.prompt_ids + rollout.completion_ids == CHAT.insert_text_ids(text)
        written = {p for turn in rollout.turns for p in range(*turn)}
        assert [p in written for p in range(len(rollout.completion_ids))] == list(rollout.completion_mask)


def test_without_an_environment_the_answer_is_the_whole_completion() -> None:
    rollout = answers(task=None).rollout([Prompt(id="a", text="3 + 4", answer="answer 7")], seed=0)[0]
    assert rollout.completion_ids == (*CHAT.insert_text_ids("answer 7"), min(stop_ids(MODEL)))
    assert all(rollout.completion_mask)
    assert rollout.reward is None


def test_a_solution_that_goes_on_after_its_end_or_is_too_long_is_refused() -> None:
    prompt = TOOLS.prompts("test")[0]
    assert prompt.turns
    with pytest.raises(DataError, match="environment ends before turn 4"):
        answers().rollout([replace(prompt, turns=(*prompt.turns, "answer 1"))], seed=0)
    with pytest.raises(DataError, match="more than the model's 20"):
        answers(max_length=20).rollout([prompt], seed=0)
