"""Tool calls in the forms that models write: what is called, and where each part stands."""

import json
import random
from typing import Any

import pytest

from opd.data.tool_calls import BrokenCall, Call, parse_calls, place_of

ADD = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
MUL = '{"name": "mul", "parameters": {"x": [1, 2]}}'


def read(text: str) -> list[Any]:
    """(name, arguments) of each call, or the error and the text at its place."""
    return [
        (call.name, call.arguments) if isinstance(call, Call) else (call.error, text[slice(*call.place)])
        for call in parse_calls(text)
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>\n{ADD}\n</tool_call>\n<tool_call>\n{MUL}\n</tool_call>",
        f"I need both.\n<tool_call>{ADD}</tool_call><tool_call>{MUL}",
        f"<tool_call>[{ADD}, {MUL}]</tool_call>",
        f"<|python_tag|>{ADD}; {MUL}",
        f"<|python_tag|>{ADD}<|eom_id|>{MUL}".replace("<|eom_id|>", "\n"),
        f"[TOOL_CALLS] [{ADD}, {MUL}]",
        '[TOOL_CALLS]add[ARGS]{"a": 1, "b": 2}[TOOL_CALLS]mul[CALL_ID]x1[ARGS]{"x": [1, 2]}',
        f"{ADD}\n{MUL}",
        f"{ADD}; {MUL}",
        f"[{ADD}, {MUL}]",
        f"```json\n[{ADD}, {MUL}]\n```",
        f"Sure, I call {ADD} and then {MUL}.",
        f'<think>or {{"name": "sub", "arguments": {{}}}}?</think>{ADD}{MUL}',
        f"no, <tool_call>{{}}</tool_call> it is</think><tool_call>{ADD}</tool_call><tool_call>{MUL}</tool_call>",
        json.dumps(
            [
                {"type": "function", "id": "1", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}},
                {"type": "function", "function": {"name": "mul", "arguments": {"x": [1, 2]}}},
            ]
        ),
    ],
)
def test_every_form_gives_the_same_calls(text: str) -> None:
    assert read(text) == [("add", {"a": 1, "b": 2}), ("mul", {"x": [1, 2]})]
    for call in parse_calls(text):
        assert isinstance(call, Call)
        assert text[slice(*call.name_place)] == call.name


@pytest.mark.parametrize(
    "said", ["</tool_call>", "<tool_call>", "a <tool_call>{} b</tool_call>", "<think>hm</think>", "[TOOL_CALLS]"]
)
def test_marks_inside_a_text_are_part_of_it(said: str) -> None:
    calls = [json.dumps({"name": "write", "arguments": {"text": said, "n": n}}) for n in (1, 2)]
    wanted = [("write", {"text": said, "n": n}) for n in (1, 2)]
    for text in (
        "".join(f"<tool_call>{call}</tool_call>\n" for call in calls),
        "[TOOL_CALLS]" + f"[{', '.join(calls)}]",
    ):
        assert read(f"<think>or <tool_call>{{}}</tool_call>?</think>{text}") == wanted


def test_thoughts_inside_a_text_are_part_of_it() -> None:
    call = json.dumps({"name": "write", "arguments": {"text": "<think>hm</think>"}})
    assert read(f"<think>or?</think>{call}") == [("write", {"text": "<think>hm</think>"})]


def test_names_of_servers_stand_before_arguments() -> None:
    assert read('[TOOL_CALLS]files/v1:read.one-by-one[ARGS]{"a": 1}') == [("files/v1:read.one-by-one", {"a": 1})]


@pytest.mark.parametrize(
    "text",
    [
        "The result is 26.",
        "",
        'A person is {"name": "Ann", "age": 4}.',
        "The set {1, 2} and the list [1, 2].",
        '{"name": "Ann"}',
        "{not json at all}",
        f"<think>{ADD}</think>done",
        f"<think>{ADD} never closed",
    ],
)
def test_a_message_without_a_call_has_none(text: str) -> None:
    assert parse_calls(text) == []


@pytest.mark.parametrize(
    ("text", "error", "at"),
    [
        ('<tool_call>{"name": "add", "arguments": {"a": }}</tool_call>', "Expecting value", "}}"),
        (
            "<tool_call>{'name': 'add'}</tool_call>",
            "Expecting property name enclosed in double quotes",
            "'name': 'add'}",
        ),
        ('<|python_tag|>{"name": "add", "parameters": {"a": 1}', "Expecting ',' delimiter", "}"),
        ('[TOOL_CALLS][{"name": "add" "arguments": {}}]', "Expecting ',' delimiter", '"arguments": {}}]'),
        ('[TOOL_CALLS]add[ARGS]{"a": 1', "Expecting ',' delimiter", "1"),
        ("[TOOL_CALLS]add[ARGS][1]", "arguments are no JSON object", "[1]"),
        ('{"name": "add", "arguments": {"a": 01}}', "Expecting ',' delimiter", "1}}"),
        ("<tool_call>add(1, 2)</tool_call>", "a call is a JSON object with name and arguments", "<tool_call>add(1, 2)"),
        ("<tool_call></tool_call>", "a call is a JSON object with name and arguments", "<tool_call>"),
        ("<tool_call>[3]</tool_call>", "a call is a JSON object with name and arguments", "3"),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', "the call has no name", "3"),
        ('<tool_call>{"arguments": {}}</tool_call>', "the call has no name", '{"arguments": {}}'),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "arguments are no JSON object", "[1]"),
        ('{"name": "add", "parameters": "a=1"}', "parameters are no JSON object", '"a=1"'),
    ],
)
def test_a_broken_call_is_a_fault_at_its_place(text: str, error: str, at: str) -> None:
    assert read(text) == [(error, at)]


def test_a_broken_call_leaves_the_others() -> None:
    assert read(f'<tool_call>{ADD}</tool_call><tool_call>{{"name"}}</tool_call><tool_call>{MUL}</tool_call>') == [
        ("add", {"a": 1, "b": 2}),
        ("Expecting ':' delimiter", "}"),
        ("mul", {"x": [1, 2]}),
    ]


def test_places_inside_a_call() -> None:
    text = '<tool_call>\n{ "name" : "é", "arguments" : {"a\\"b" : [1, {"c": "d"}], "e": null } }'
    (call,) = parse_calls(text)
    assert isinstance(call, Call)

    def at(*path: str | int, key: bool = False) -> str:
        assert isinstance(call, Call)
        return text[slice(*place_of(text, call.arguments_place, path, key=key))]

    assert at() == '{"a\\"b" : [1, {"c": "d"}], "e": null }'
    assert at('a"b') == '[1, {"c": "d"}]'
    assert at('a"b', key=True) == '"a\\"b"'
    assert at('a"b', 1, "c") == '"d"'
    assert at('a"b', 0) == "1"
    assert at("e", key=True) == '"e"'
    assert at("missing") == at()


def test_odd_texts_raise_nothing() -> None:
    pieces = [
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "{",
        "}",
        "[",
        "]",
        '"name"',
        ":",
        ADD,
        "\\",
        "x",
        "<think>",
    ]

    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randrange(8)))
        for call in parse_calls(text):
            place = call.name_place if isinstance(call, Call) else call.place
            assert 0 <= place[0] < place[1] <= len(text), (text, call)
            assert isinstance(call, Call | BrokenCall)


@pytest.mark.parametrize("inside", ["[" * 100_000, "9" * 5000])
def test_json_that_python_cannot_read_is_a_fault(inside: str) -> None:
    (call,) = parse_calls(f'<tool_call>{{"name": "f", "arguments": {{"a": {inside}')
    assert isinstance(call, BrokenCall)
    assert parse_calls(f"see {inside}") == []
