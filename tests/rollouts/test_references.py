"""Reference answers as rollouts: what a correct student would have written, in the environment."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from opd.data.tasks import get_task
from opd.errors import DataError
from opd.models.chat import Chat
from opd.models.loading import load
from opd.rollouts.references import ReferenceAnswers
from opd.types import Message, Observation, Prompt
from support.chat_templates import FORMATS, make_chat_tokenizer

MODEL = load("nano/tools-base", key="student")
CHAT = Chat(MODEL.tokenizer)
TOOLS = get_task("tools")


def answers(task: object = TOOLS, max_length: int | None = None) -> ReferenceAnswers:
    return ReferenceAnswers(CHAT, task, max_length=max_length)  # type: ignore[arg-type]


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
    assert rollout.completion_ids == (*CHAT.insert_text_ids("answer 7"), MODEL.tokenizer.eos_token_id)
    assert all(rollout.completion_mask)
    assert rollout.reward is None


def test_a_solution_that_goes_on_after_its_end_or_is_too_long_is_refused() -> None:
    prompt = TOOLS.prompts("test")[0]
    assert prompt.turns
    with pytest.raises(DataError, match="environment ends before turn 4"):
        answers().rollout([replace(prompt, turns=(*prompt.turns, "answer 1"))], seed=0)
    with pytest.raises(DataError, match="more than the model's 20"):
        answers(max_length=20).rollout([prompt], seed=0)


class Echo:
    """Answers the first turn and ends after the second."""

    def prompts(self, split: str) -> list[Prompt]:
        return []

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        return Observation(message={"role": "user", "content": "And 5?"} if len(transcript) == 1 else None)


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.end[-1] != "<eos>"])
def test_reference_answers_end_with_the_templates_turn_end_and_read_as_the_template_renders_them(name: str) -> None:
    chat = Chat(make_chat_tokenizer(name))
    prompt = Prompt(id="a", messages=({"role": "user", "content": "3 + 4?"},), turns=("It is 7.", "12 then."))
    rollout = ReferenceAnswers(chat, Echo(), max_length=None).rollout([prompt], seed=0)[0]
    going_on = [*(prompt.messages or ()), *rollout.transcript, {"role": "user", "content": "Thanks."}]
    text = chat.tokenizer.apply_chat_template(going_on, tokenize=False)
    written = rollout.prompt_ids + rollout.completion_ids
    assert chat.insert_text_ids(text)[: len(written)] == written
    assert [rollout.completion_ids[t.stop - len(chat.turn_end_ids) : t.stop] for t in rollout.turns] == [
        chat.turn_end_ids,
        chat.turn_end_ids,
    ]


def test_a_plain_text_answer_ends_with_eos_also_if_the_tokenizer_has_a_template() -> None:
    chat = Chat(make_chat_tokenizer("llama 3"))
    prompt = Prompt(id="a", text="3 + 4 =", answer=" 7")
    rollout = ReferenceAnswers(chat, None, max_length=None).rollout([prompt], seed=0)[0]
    assert rollout.completion_ids == (*chat.insert_text_ids(" 7"), chat.tokenizer.eos_token_id)
