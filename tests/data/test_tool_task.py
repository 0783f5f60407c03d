"""The environment of prompts.tools: schemas, faults at their places, real calls in a real process, rewards."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from transformers import AutoTokenizer

from opd.config.tools import ToolsConfig
from opd.data.expected_calls import are_met, read_expected
from opd.data.functions import Functions, ToolError
from opd.data.tool_calls import Call, parse_calls
from opd.data.tool_prompts import fit_to_template
from opd.data.tool_schemas import Tool
from opd.data.tool_task import ToolTask, states
from opd.errors import ConfigError, DataError, ModelError
from opd.models.bundled import resolve
from opd.models.chat import Chat
from opd.types import Message, Observation, Prompt
from support.chat_templates import make_chat_tokenizer

FIVE = "support.five_tools:FUNCTIONS"
ASKED: tuple[Message, ...] = ({"role": "user", "content": "What is 1 + 2?"},)


@pytest.fixture(scope="module")
def task() -> Iterator[ToolTask]:
    made = ToolTask.make(ToolsConfig(functions=FIVE, timeout=1.0), key="prompts.tools")
    yield made
    assert made.functions
    made.functions.close()


def prompt(task: ToolTask, **fields: Any) -> Prompt:
    return task.prepared(Prompt(id="p", messages=ASKED, **fields), key="prompts")


def turn(*calls: Mapping[str, Any] | str) -> Message:
    written = (call if isinstance(call, str) else json.dumps(call) for call in calls)
    return {"role": "assistant", "content": "".join(f"<tool_call>\n{call}\n</tool_call>\n" for call in written)}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def faults(seen: Observation, message: Message) -> list[tuple[str, str, str]]:
    """(kind, error, text at the place) of each event."""
    text = message["content"]
    return [
        (kind, detail["error"], text[slice(*place)] if place else text)
        for (kind, detail), place in zip(seen.events, seen.places, strict=True)
    ]


def test_several_calls_of_a_turn_are_run_in_order(task: ToolTask) -> None:
    seen = task.step(prompt(task), [turn(call("add", a=1, b=2), call("weather", city="Rom", days=[1]))])
    assert [m["content"] for m in seen.messages] == [
        "3",
        '{"city": "Rom", "unit": "celsius", "temperature": 21, "café": "ü?"}',
    ]
    assert [(m["role"], m["name"], len(m["tool_call_id"])) for m in seen.messages] == [
        ("tool", "add", 9),
        ("tool", "weather", 9),
    ]
    assert seen.events == ()
    assert seen.correct is False
    assert seen.num_calls == 2


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (turn(call("multiply", a=1)), ("unknown_tool", "no such tool: multiply", "multiply")),
        (turn(call("add", a=1)), ("bad_arguments", "add needs 'b'", "}")),
        (turn(call("add", a=1, b="2")), ("bad_arguments", "b: '2' is not of type 'integer'", '"2"')),
        (turn(call("add", a=1, b=2, c=3)), ("bad_arguments", "add has no argument 'c'", '"c"')),
        (
            turn(call("weather", city="Rom", days=[1, "x"])),
            ("bad_arguments", "days.1: 'x' is not of type 'integer'", '"x"'),
        ),
        (
            turn(call("weather", city="Rom", unit="kelvin")),
            ("bad_arguments", "unit: 'kelvin' is not one of ['celsius', 'fahrenheit']", '"kelvin"'),
        ),
        (turn(call("add", b="x")), ("bad_arguments", "b: 'x' is not of type 'integer'; add needs 'a'", '"x"')),
        (turn('{"name": "add"}'), ("bad_arguments", "add needs 'a'; add needs 'b'", "}")),
        (
            turn('{"name": "add", "arguments": {"a": 1,}}'),
            ("bad_json", "not a valid call: Illegal trailing comma before end of object", ",}}\n"),
        ),
    ],
)
def test_a_faulty_call_is_an_event_at_its_place(task: ToolTask, said: Message, found: tuple[str, str, str]) -> None:
    seen = task.step(prompt(task), [said])
    ((kind, error, at),) = faults(seen, said)
    if found[0] == "bad_json":  # the sentence is Python's own, and differs between its versions
        assert (kind, error.partition(":")[0]) == ("bad_json", "not a valid call")
    else:
        assert (kind, error, at) == found
    assert seen.events[0][1]["tools"].startswith("add(a: integer, b: integer), weather(city: string, unit?:")
    assert [m["content"] for m in seen.messages] == [f"error: {error}"]
    assert seen.correct is False


def test_a_faulty_call_does_not_stop_the_others(task: ToolTask) -> None:
    seen = task.step(prompt(task), [turn(call("sub"), call("add", a=1, b=2), "{")])
    assert [kind for kind, _ in seen.events] == ["unknown_tool", "bad_json"]
    assert seen.messages[1]["content"] == "3"
    assert seen.num_calls == 3


def test_functions_that_hang_die_or_raise_are_answered_and_the_next_call_works(task: ToolTask) -> None:
    started = time.perf_counter()
    said = turn(call("hang"), call("die"), call("fail", text="no"), call("fail", text="leave"), call("add", a=1, b=1))
    seen = task.step(prompt(task), [said])
    assert [m["content"] for m in seen.messages] == [
        "error: hang took more than 1 s",
        "error: die ended its process",
        "error: RuntimeError: no",
        "error: SystemExit: left",
        "2",
    ]
    assert [kind for kind, _ in seen.events] == ["failed_call"] * 4
    assert not any("tool" in detail for _, detail in seen.events)  # the calls were valid
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize(
    ("fields", "turns", "reward"),
    [
        ({"answer": "3"}, ["It is 3."], 1.0),
        ({"answer": "3"}, ["3 is 1 + 2"], 1.0),
        ({"answer": "3"}, ["It is 31, not 0.3 or 3.5."], 0.0),
        ({"answer": "3", "other_answers": ("three",)}, ["Three!"], 1.0),
        ({"answer": "3"}, ["<think>3</think>It is 4."], 0.0),
        ({}, ["It is 3."], 0.0),
        ({}, [turn(call("add", a=1, b=2)), "It is 3."], 1.0),
        ({}, [turn(call("sub")), turn(call("add", a=1, b=2)), "It is 3."], 0.0),
        ({"data": {"calls": []}}, ["I know it: 3."], 1.0),
        ({"data": {"calls": []}}, [turn(call("add", a=1, b=2)), "3"], 0.0),
        ({"data": {"calls": [call("add", a=1, b=2)]}}, [turn(call("sub")), turn(call("add", b=2, a=1)), "3"], 1.0),
        ({"data": {"calls": [call("add", a=1, b=2)]}}, [turn(call("add", a=1, b=3)), "3"], 0.0),
        ({"data": {"calls": [call("add", a=1, b=2)]}, "answer": "4"}, [turn(call("add", a=1, b=2)), "3"], 0.0),
        ({"data": {"calls": [{"add": {"a": [1], "b": [2, 3]}}]}}, [turn(call("add", a=1, b=3)), "x"], 1.0),
    ],
)
def test_success(task: ToolTask, fields: dict[str, Any], turns: Sequence[Any], reward: float) -> None:
    transcript = [t if isinstance(t, Mapping) else {"role": "assistant", "content": t} for t in turns]
    seen = task.step(prompt(task, **fields), transcript)
    assert seen.message is None
    assert seen.correct == bool(reward)
    assert seen.events == ()


def test_an_answer_without_the_calls_that_the_row_expects_is_an_event(task: ToolTask) -> None:
    expects = prompt(task, data={"calls": [call("add", a=1, b=2)]})
    seen = task.step(expects, [{"role": "assistant", "content": "It is 3."}])
    assert seen.correct is False
    assert [(kind, detail["tools"][:3]) for kind, detail in seen.events] == [("no_call", "add")]


def test_a_valid_call_that_the_row_does_not_expect_is_an_event_and_no_invalid_call(task: ToolTask) -> None:
    expects = prompt(task, data={"calls": [call("add", a=1, b=2)]})
    (weather,) = (turn(call("weather", city="Oslo")),)
    seen = task.step(expects, [weather])
    ((kind, detail),) = seen.events
    assert (kind, detail["error"]) == ("wrong_call", "another call is expected: weather")
    assert (detail["function"], detail["expected"]) == ("weather", "add(a: integer, b: integer)")
    assert "tool" not in detail  # such calls are not counted as invalid
    assert [weather["content"][slice(*place)] for place in seen.places if place] == ["weather"]
    values = turn(call("add", a=1, b=3))
    seen = task.step(expects, [values])
    assert seen.events[0][1]["error"] == "other arguments are expected: add"
    assert [values["content"][slice(*place)] for place in seen.places if place] == ["3"]
    near = turn(call("address", city="Oslo"))
    ((kind, _),) = task.step(expects, [near]).events
    assert kind == "unknown_tool"
    assert [near["content"][slice(*place)] for place in task.step(expects, [near]).places if place] == ["ress"]
    begun = turn(call("ad"))
    assert [begun["content"][slice(*place)] for place in task.step(expects, [begun]).places if place] == ['"']
    assert task.step(expects, [turn(call("add", a=1, b=2))]).events == ()
    assert task.step(prompt(task), [weather]).events == ()  # nothing is expected
    none = task.step(prompt(task, data={"calls": []}), [weather])
    assert [kind for kind, _ in none.events] == ["wrong_call"]


def test_a_wrong_call_that_is_not_run_ends_the_episode_with_its_event() -> None:
    checked = ToolTask.make(ToolsConfig(), key="prompts.tools")
    schema = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}
    asked = ({"role": "user", "content": "?"},)
    row = Prompt(id="x", messages=asked, tools=(schema,), data={"calls": [call("f", x=1)]})
    said = turn(call("f", x=2))
    seen = checked.step(checked.prepared(row, key="prompts.tools"), [said])
    assert (seen.message, seen.correct, seen.num_calls) == (None, False, 1)
    assert [kind for kind, _ in seen.events] == ["wrong_call"]
    assert [said["content"][slice(*place)] for place in seen.places if place] == ["2"]


def test_an_event_names_the_tools_that_the_row_expects(task: ToolTask) -> None:
    expects = prompt(task, data={"calls": [call("add", a=1, b=2)]})
    for said, expected in ((turn(call("plus", a=1)), expects), (turn(call("plus", a=1)), prompt(task))):
        ((_, detail),) = task.step(expected, [said]).events
        assert detail["expected"] == ("add(a: integer, b: integer)" if expected is expects else detail["tools"])


def test_tools_without_functions_are_checked_and_end_the_episode() -> None:
    checked = ToolTask.make(ToolsConfig(), key="prompts.tools")
    schema = {
        "name": "math.add",
        "parameters": {"type": "dict", "properties": {"a": {"type": "float"}}, "required": ["a"]},
    }
    asked = prompt(checked, tools=(schema,), data={"calls": [{"math.add": {"a": [2.0]}}]})
    assert asked.tools == (
        {
            "type": "function",
            "function": {
                "name": "math.add",
                "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
            },
        },
    )
    right, wrong = turn(call("math.add", a=2)), turn(call("math.add", a="2"))
    assert checked.step(asked, [right]).correct is True
    assert checked.step(asked, [turn(call("math.add", a=3))]).correct is False
    seen = checked.step(asked, [wrong])
    assert [m["content"] for m in seen.messages] == ["error: a: '2' is not of type 'number'"]
    assert checked.step(asked, [wrong, *seen.messages, right]).correct is True


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("support.nothing:FUNCTIONS", r"prompts.tools: 'support.nothing:FUNCTIONS' cannot be imported"),
        (
            "support.five_tools:UNDOCUMENTED",
            r"prompts.tools: function 'len' has no schema \(.*\). Fix: give each argument",
        ),
        (
            "support.five_tools:NOTHING",
            r"prompts.tools: 'support.five_tools:NOTHING' has no function. Fix: name a list",
        ),
        (
            "support.odd_tools:by_place",
            r"prompts.tools: function 'by_place' has 'a', which a call cannot give by its name. Fix: write it as",
        ),
        ("support.odd_tools:of_many", r"function 'of_many' has '\*numbers', which a call cannot give by its name"),
        ("support.odd_tools:of_any", r"function 'of_any' has '\*\*more', which a call cannot give by its name"),
        ("support.odd_tools:one_by_one", r"function 'one_by_one' is a generator. Fix: return a list"),
        (
            "support.odd_tools:of_a_class",
            r"'of_a_class' has no schema \(.*odd_tools.Point.*\). Fix: .* type hint of int",
        ),
        ("support.odd_tools:OBJECT", r"prompts.tools: <.*Callable.*> is no function. Fix: name functions"),
        ("support.five_tools:__name__", r"prompts.tools: 'support.five_tools:__name__' has .*. Fix: name a list"),
    ],
)
def test_functions_that_cannot_be_tools_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ToolTask.make(ToolsConfig(functions=name), key="prompts.tools")


def test_functions_get_members_of_enumerations_and_coroutines_are_run() -> None:
    odd = Functions("support.odd_tools:FUNCTIONS", timeout=10, key="prompts.tools")
    assert odd.call("paint", {"colour": "red", "others": ["blue"]}) == "RED and BLUE"
    assert odd.call("paint", {"colour": "blue"}) == "BLUE and nothing"
    assert odd.call("wait", {"seconds": 0}) == "done"
    with pytest.raises(ToolError, match="wait ended"):
        odd.call("wait", {"seconds": -1})
    odd.close()


@pytest.mark.parametrize(
    ("parameters", "arguments", "faults"),
    [
        ({"properties": {"a": {"type": "integer", "nullable": True}}}, {"a": None}, []),
        ({"properties": {"a": {"type": "integer", "nullable": True, "enum": [1]}}}, {"a": None}, []),
        (
            {"properties": {"a": {"type": "integer", "nullable": True}}},
            {"a": "1"},
            ["a: '1' is not of type 'integer', 'null'"],
        ),
        ({"properties": {"nullable": {"type": "boolean"}}}, {"nullable": True}, []),
        ({"anyOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, {"b": 1}, []),
        (
            {"allOf": [{"properties": {"a": {}}}]},
            {"b": 1},
            ["f: Unevaluated properties are not allowed ('b' was unexpected)"],
        ),
        (
            {"$ref": "#/$defs/A", "$defs": {"A": {"properties": {"a": {"type": "integer"}}}}},
            {"a": "1"},
            ["a: '1' is not of type 'integer'"],
        ),
        (
            {"properties": {"a": {"properties": {"b": {}}, "required": ["b"]}}},
            {"a": {}},
            ["a needs 'b'"],
        ),
    ],
)
def test_schemas_of_several_parts(parameters: Any, arguments: Any, faults: list[str]) -> None:
    (made,) = parse_calls(json.dumps({"name": "f", "arguments": arguments}))
    assert isinstance(made, Call)
    for name in ("parameters", "input_schema", "inputSchema"):
        tool = Tool.read({"name": "f", name: parameters})
        assert [fault.error for fault in tool.faults(made, json.dumps(call("f", **arguments)))] == faults
        assert tool.for_template["function"].keys() == {"name", "parameters"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"tools": ({"name": "sub"},)},
            r"prompt 'p': tool 'sub' has no function \(there are add, weather, .*\). Fix: add it",
        ),
        (
            {"tools": ({"name": "add", "parameters": {"type": "objekt"}},)},
            r"prompt 'p': the parameters of tool 'add' are no JSON schema \(type: 'objekt' is not valid",
        ),
        (
            {"tools": ({"name": "add", "parameters": {"a": {"type": "int"}}},)},
            r"prompt 'p': the parameters of tool 'add' have no 'properties'",
        ),
        (
            {"tools": ({"name": "add", "parameters": {"properties": {"a": {"$ref": "#/$defs/A"}}}},)},
            r"prompt 'p': the parameters of tool 'add' have a \$ref to '#/\$defs/A', which is not among them",
        ),
        (
            {"tools": ({"name": "add", "parameters": {"properties": {"a": {"$ref": "http://opd.invalid/a"}}}},)},
            r"prompt 'p': the parameters of tool 'add' have a \$ref to 'http://opd.invalid/a'",
        ),
        ({"tools": ({"name": "add"}, {"name": "add"})}, r"prompt 'p': two tools have one name \(add, add\)"),
        ({"data": {"calls": {"add": {}}}}, r"prompt 'p': 'calls' is no list"),
        ({"data": {"calls": [{"add": {"a": 1}}]}}, r"prompt 'p': 'calls' has {'add': {'a': 1}}. Fix: write"),
        ({"messages": None, "text": "x"}, r"prompt 'p' has no messages, and tools need a chat"),
    ],
)
def test_rows_that_do_not_fit_are_refused(task: ToolTask, fields: dict[str, Any], sentence: str) -> None:
    given = Prompt(**{"id": "p", "messages": ASKED, **fields})
    with pytest.raises(DataError, match=f"^prompts: {sentence}"):
        task.prepared(given, key="prompts")


def test_without_functions_a_row_needs_tools() -> None:
    with pytest.raises(DataError, match=r"prompt 'p' has no tools. Fix: add the column 'tools', or name"):
        prompt(ToolTask(None))


@pytest.mark.parametrize(
    ("given", "wanted", "equal"),
    [
        ("New York, NY", "new york ny", True),
        (5, 5.0, True),
        (True, 1, False),
        ([1, "A b"], [1.0, "ab"], True),
        ([1, 2], [2, 1], False),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        (None, None, True),
        ("1", 1, False),
    ],
)
def test_values_of_expected_calls(given: Any, wanted: Any, *, equal: bool) -> None:
    made = Call("f", {"x": given}, None, (0, 1), (0, 1))
    assert are_met(read_expected([call("f", x=wanted)]), [made]) == equal


def test_possible_answers_and_any_order() -> None:
    expected = read_expected([{"f": {"a": [1, 2], "b": ["", "x"]}}, {"g": {"c": [{"d": [1], "e": ["", 2]}]}}])
    made = parse_calls(json.dumps([call("g", c={"d": 1}), call("f", a=2)]))
    assert are_met(expected, [c for c in made if isinstance(c, Call)])
    for wrong in ([call("g", c={"d": 2}), call("f", a=2)], [call("f", a=2)], [call("g", c={"d": 1}), call("f", b="x")]):
        assert not are_met(expected, [c for c in parse_calls(json.dumps(wrong)) if isinstance(c, Call)])


def test_signatures_are_short() -> None:
    schema = {
        "name": "f",
        "parameters": {"type": "dict", "properties": {"a": {"type": "tuple", "items": {"type": "any"}}}},
    }
    assert Tool.read(schema).signature == "f(a?: list of any)"


@pytest.mark.parametrize(
    ("name", "note", "roles"),
    [
        ("qwen 3", "by the chat template, and their results have the role tool", ["user"]),
        ("llama 3.1", "by the chat template, and their results have the role tool", ["user"]),
        ("mistral with tools", "by the chat template, and their results have the role tool", ["user"]),
        ("chatml", "in the system message, and their results have the role tool", ["system", "user"]),
        ("gemma without system", "in the first message, and their results have the role user", ["user"]),
    ],
)
def test_tools_reach_every_template(task: ToolTask, name: str, note: str, roles: list[str]) -> None:
    chat, notes = Chat(make_chat_tokenizer(name)), list[str]()
    plain = Prompt(id="plain", messages=ASKED)
    fitted, other = fit_to_template([prompt(task), plain], chat, notes.append)
    assert notes == [f"tools are described {note}"]
    assert other is plain
    text = chat.prompt_text(fitted)
    assert [m["role"] for m in fitted.messages or ()] == roles
    assert all(f'"{tool}"' in text for tool in ("add", "weather", "hang", "die", "fail"))
    assert "first number" in text
    results = task.step(fitted, [turn(call("add", a=1, b=2), call("add", a=3, b=4))]).messages
    inserted = chat.decode(chat.message_ids(results, chat.turn_end_ids), skip_special_tokens=False)
    assert inserted.index("3") < inserted.index("7")


def test_a_template_that_takes_no_results_is_refused(task: ToolTask) -> None:
    tokenizer = make_chat_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0].content }}"
    )
    with pytest.raises(ModelError, match=r"neither in the role tool nor user"):
        fit_to_template([prompt(task)], Chat(tokenizer), lambda text: None)


def test_a_tokenizer_that_cannot_write_results_is_refused(task: ToolTask) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve("nano/tools-base"))
    with pytest.raises(ModelError, match=r"^prompts.tools: the student's tokenizer has no tokens .*Fix: "):
        fit_to_template([prompt(task)], Chat(tokenizer), lambda text: None)


@pytest.mark.parametrize(
    ("text", "found"), [("a 26.", True), ("126", False), ("26.5", False), ("-26", False), ("", False)]
)
def test_an_answer_stands_in_a_message_as_a_whole(text: str, *, found: bool) -> None:
    assert states(text, "26") == found
