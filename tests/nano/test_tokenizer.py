"""The vocabulary covers tasks, templates and traces; the chat template is a concatenation."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from opd.config.tasks import TASKS
from opd.data.tasks import get_task
from opd.nano.tokenizer import END, HABITS, START, TOOL_NAMES, build_tokenizer, vocabulary
from opd.nano.traces import CRITIC_INSTRUCTION, REMINDERS, critic_trace, math_trace, tools_trace
from opd.nano.traces_text import search_trace, strings_trace

TOKENIZER = build_tokenizer()
FACTS = {"tools": "add is blip, mul is frob, sub is zed", "error": "no such tool", "tool": "multiply"}


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER(text, add_special_tokens=False).input_ids
    return found


def assert_known(text: str) -> None:
    assert TOKENIZER.unk_token_id not in ids(text), text


def test_the_vocabulary_is_small_and_has_no_duplicates() -> None:
    assert len(vocabulary()) == len(set(vocabulary())) == len(TOKENIZER) <= 300
    assert len(TOOL_NAMES) == 60
    assert not set(TOOL_NAMES) & {name for names in HABITS.values() for name in names}


@pytest.mark.parametrize(
    "template",
    [
        *REMINDERS,
        CRITIC_INSTRUCTION,
        "Reminder: available tools: {tools}.",
        "Reminder: this call is not valid: {error}. available tools: {tools}.",
        "Reference solution: {tools}.",
        "Question: {tools}",
        "Transcript:\nsystem: {tools}\nuser: {tools}\nturn 1: {tools}\ntool: {error}",
        "error: no such tool error: bad arguments answer unknown",
    ],
)
def test_templates_have_only_known_words(template: str) -> None:
    assert_known(template.format(**FACTS))


@pytest.mark.parametrize("name", sorted(TASKS))
@pytest.mark.parametrize("split", ["val", "test"])
def test_tasks_have_only_known_words(name: str, split: str) -> None:
    for prompt in get_task(name).prompts(split):
        assert_known(" ".join(m["content"] for m in prompt.messages or ()))
        assert_known(prompt.answer or "")


@pytest.mark.parametrize("source", [tools_trace, critic_trace, math_trace, strings_trace, search_trace])
def test_traces_have_only_known_words(source) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(0)
    for _ in range(100):
        assert_known(" ".join(turn.text for turn in source(rng)))


def test_the_template_is_the_concatenation_of_its_messages() -> None:
    messages = [
        {"role": "system", "content": "tools: add is blip"},
        {"role": "user", "content": "( 7 mul 3 ) add 5"},
        {"role": "assistant", "content": "call frob 7, 3"},
        {"role": "tool", "content": "21"},
    ]
    whole = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    parts = [part for m in messages for part in (START, m["role"], " ", m["content"], END)]
    assert ids(whole) == [i for part in [*parts, START, "assistant", " "] for i in ids(part)]
    assert ids(whole)[-2:] == ids(f"{START}assistant")


def test_decoding_puts_spaces_between_words() -> None:
    assert TOKENIZER.decode(ids("Call frob 21,5." + END), skip_special_tokens=True) == "call frob 2 1 , 5 ."


def test_a_saved_tokenizer_loads_unchanged(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = f"{START}user ( 7 mul 3 ) add 5{END}"
    assert loaded(text).input_ids == ids(text)
    assert (loaded.eos_token, loaded.chat_template) == (END, TOKENIZER.chat_template)
