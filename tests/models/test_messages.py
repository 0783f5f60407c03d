"""Whole messages and tools: prompt ids equal the template's own rendering, in whatever form a row holds them."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from opd.data.rows import from_rows
from opd.models.chat import Chat
from opd.models.messages import lines_of
from opd.types import Prompt
from support.chat_templates import make_chat_tokenizer
from support.tokenizers import SHARED_DATA

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string", "default": None}}},
    },
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"place": "Köln"}}}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": '7 °C,\n"rain"'}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [user("Weather in Köln?")],
    "a system message": [{"role": "system", "content": "Be brief. 🙂"}, user("Hi")],
    "a call and its result": [
        user("Weather?"),
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        RESULT,
    ],
    "thoughts": [
        user("2 + 2"),
        {"role": "assistant", "content": "4", "reasoning_content": "two and two"},
        user("And 3?"),
    ],
}


def chat_named(name: str) -> Chat:
    if name != "minimind":
        return Chat(make_chat_tokenizer(name))
    if not SHARED_DATA.exists():
        pytest.skip("needs the shared data beside the checkout")
    return Chat(AutoTokenizer.from_pretrained(SHARED_DATA / "minimind-tokenizer"))


def first(row: dict[str, Any]) -> Prompt:
    return from_rows([row], key="prompts", chat=True)[0][0]


def rendered(chat: Chat, messages: Any, tools: Any = None, **kwargs: Any) -> tuple[int, ...]:
    """The ids of the template itself."""
    ids = chat.tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=True, add_generation_prompt=True, return_dict=False, **kwargs
    )
    return tuple(ids)


@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", ["minimind", "qwen 3", "llama 3.1", "mistral with tools"])
def test_a_row_renders_as_its_template_renders_it(name: str, conversation: str, tools: Any) -> None:
    chat, messages = chat_named(name), CONVERSATIONS[conversation]
    if name == "mistral with tools" and conversation == "a system message":
        pytest.skip("this template takes no system message")
    prompt = first({"messages": messages, "tools": tools})
    assert chat.prompt_ids(prompt) == rendered(chat, messages, tools)


@pytest.mark.parametrize("flag", [True, False])
def test_the_templates_arguments_reach_it_in_prompts_and_between_turns(flag: bool) -> None:
    chat = chat_named("qwen 3")
    prompt = first({"prompt": "Hi", "chat_template_kwargs": {"enable_thinking": flag}})
    assert chat.prompt_ids(prompt) == rendered(chat, [user("Hi")], enable_thinking=flag)
    own = chat.of(prompt)
    turn = (*chat.insert_text_ids("one"), *chat.turn_end_ids)
    grown = chat.prompt_ids(prompt) + turn + own.message_ids(user("go on"), turn)
    thought = "<think>\n\n</think>\n\n" * (not flag)
    assert chat.decode(grown, skip_special_tokens=False) == (
        f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{thought}one<|im_end|>\n"
        f"<|im_start|>user\ngo on<|im_end|>\n<|im_start|>assistant\n{thought}"
    )
    hinted = own.above_turn(grown, user("a hint"))
    assert chat.decode(hinted, skip_special_tokens=False).endswith(
        f"go on<|im_end|>\n<|im_start|>user\na hint<|im_end|>\n<|im_start|>assistant\n{thought}"
    )


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}",
        "{% for m in messages %}[{{ m.role }}]{{ m.content + '' }}{% endfor %}",
        "{% for m in messages %}[{{ m.role }}]{% if m.content is not none %}{{ m.content }}{% endif %}{% endfor %}",
    ],
)
def test_a_null_content_is_never_the_word_none(template: str) -> None:
    chat = chat_named("chatml")
    chat.tokenizer.chat_template = template
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert chat.prompt_text(Prompt("x", (user("a"), call, user("b")))) == "[user]a[assistant][user]b"


def test_arguments_are_json_text_where_a_template_takes_nothing_else() -> None:
    chat = chat_named("arguments as text")
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    text = chat.prompt_text(Prompt("x", (user("a"), call)))
    assert text == '<|user|>a<|end|><|assistant|>call get_weather\n{"place": "Köln"}<|end|><|assistant|>'


@pytest.mark.parametrize("name", ["qwen 3", "llama 3.1", "mistral with tools", "minimind"])
def test_arguments_as_json_text_render_as_the_object(name: str) -> None:
    chat = chat_named(name)
    as_text = {**CALL, "function": {"name": "get_weather", "arguments": '{"place": "Köln"}'}}
    one, other = (
        Prompt("x", (user("a"), {"role": "assistant", "content": "", "tool_calls": [call]}, RESULT))
        for call in (CALL, as_text)
    )
    assert chat.prompt_ids(one) == chat.prompt_ids(other)


@pytest.mark.parametrize("name", ["chatml", "qwen 3", "llama 3.1", "parts alone", "minimind"])
def test_text_parts_render_as_their_text(name: str) -> None:
    chat = chat_named(name)
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "wrote it?"}]
    prompt = first({"messages": [{"role": "user", "content": parts}]})
    assert "Who wrote it?" in chat.prompt_text(prompt)
    assert chat.prompt_ids(prompt) == chat.prompt_ids(first({"messages": [user("Who wrote it?")]}))


def test_a_person_reads_tools_and_calls() -> None:
    prompt = first({"messages": CONVERSATIONS["a call and its result"], "tools": [TOOL]})
    tools, *messages = lines_of(prompt)
    assert tools.startswith('tools: [{"type": "function", "function": {"name": "get_weather"')
    assert messages == [
        "user: Weather?",
        'assistant: {"name": "get_weather", "arguments": {"place": "Köln"}}',
        'tool: 7 °C,\n"rain"',
    ]
