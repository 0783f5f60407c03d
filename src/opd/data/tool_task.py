"""The environment of ``prompts.tools``: checks the calls of each turn, runs them, and answers with their results."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from opd.config.tools import ToolsConfig
from opd.data.answers import answers_match
from opd.data.expected_calls import ExpectedCall, are_met, read_expected
from opd.data.functions import Functions, ToolError
from opd.data.thoughts import without_thoughts
from opd.data.tool_calls import BrokenCall, Call, Place, departure, parse_calls, place_of
from opd.data.tool_schemas import Tool
from opd.errors import DataError
from opd.types import Message, Observation, Prompt

CHECKED = "ok"
"""Result of a valid call of a tool that is only checked, beside a faulty one."""


RAN = ("failed_call", "wrong_call")
"""Kinds of faults of calls that are valid."""


class _Fault(NamedTuple):
    """Why a call cannot be run."""

    kind: str
    error: str
    place: Place


@dataclass(frozen=True)
class ToolTask:
    """Function calling, with the faults of calls as events.

    ``unknown_tool``, ``bad_json``, ``bad_arguments`` and ``failed_call`` stand at the place of the fault: a wrong name
    where it departs from the right one. If the row
    expects calls, a valid call that is none of them is ``wrong_call``, and an answer without any call ``no_call``.

    A turn without a call ends the episode. So do valid calls of tools that have no functions. It is correct if the
    last message has the row's ``answer`` and the calls are the row's ``calls``, whichever it gives; without either, if
    there was a call and no faulty one.

    Attributes:
        functions: run the calls; None for tools that are only checked.
    """

    functions: Functions | None

    @classmethod
    def make(cls, config: ToolsConfig, *, key: str) -> ToolTask:
        """The task of ``prompts.tools``.

        Raises:
            ConfigError: there are no such functions, or one has no schema.
        """
        if config.functions is None:
            return cls(None)
        return cls(Functions(config.functions, timeout=config.timeout, key=key))

    def prompts(self, split: str) -> Sequence[Prompt]:
        """Refuse: this task has no prompts."""
        raise DataError(f"tools have no prompts, so no split '{split}'. Fix: give prompts.path")

    def prepared(self, prompt: Prompt, *, key: str) -> Prompt:
        """A prompt with its tools: the row's own schemas, or those of all functions.

        Raises:
            DataError: it has no messages or no tools, a schema or an expected call is wrong, or a tool has no function.
        """
        where = f"{key}: prompt '{prompt.id}'"
        if prompt.messages is None:
            raise DataError(f"{where} has no messages, and tools need a chat. Fix: use a model with a chat template")
        given = prompt.tools or tuple(self.functions.schemas.values() if self.functions else ())
        try:
            tools = list(_tools(json.dumps(list(given))).values())
            read_expected(prompt.data.get("calls") or [])
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None
        if not tools:
            raise DataError(f"{where} has no tools. Fix: add the column 'tools', or name {key}.tools.functions")
        known = self.functions.schemas if self.functions else {tool.name: {} for tool in tools}
        if missing := next((tool.name for tool in tools if tool.name not in known), None):
            raise DataError(f"{where}: tool '{missing}' has no function (there are {', '.join(known)}). Fix: add it")
        schemas = tuple(tool.for_template for tool in tools)
        return replace(prompt, tools=schemas, data={**prompt.data, "tool_schemas": list(schemas)})

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        """Run the calls of the last message; without any, check the answer."""
        tools = _tools(json.dumps(prompt.data["tool_schemas"]))
        said = transcript[-1]["content"]
        calls = _checked(said, prompt, tools)
        if not calls or (self.functions is None and not any(fault for _, fault in calls)):
            return self._end(prompt, [m["content"] for m in transcript if m["role"] == "assistant"], tools)
        events: list[tuple[str, Mapping[str, str]]] = []
        places: list[Place] = []
        results: list[str] = []
        for call, wrong in calls:
            result, fault = (f"error: {wrong.error}", wrong) if wrong else self._run(call)
            results.append(result)
            if fault := fault or _unexpected(call, prompt, said):
                events.append(_event(fault, call, prompt, tools))
                places.append(fault.place)
        message, *more = _messages([call for call, _ in calls], results, prompt.data.get("result_role", "tool"))
        return Observation(
            message=message,
            more=tuple(more),
            events=tuple(events),
            places=tuple(places),
            correct=False,  # if the rollout is cut off here
            num_calls=len(calls),
        )

    def _end(self, prompt: Prompt, turns: Sequence[str], tools: dict[str, Tool]) -> Observation:
        """The verdict on an episode whose last turn has no call that is run."""
        made = [_checked(turn, prompt, tools) for turn in turns]
        valid = [call for calls in made for call, fault in calls if isinstance(call, Call) and not fault]
        checks, expected = [], _expected(prompt)
        if expected is not None:
            checks.append(are_met(expected, valid))
        if prompt.answers:
            checks.append(any(states(turns[-1], answer) for answer in prompt.answers))
        if not checks:
            checks = [bool(valid), len(valid) == sum(map(len, made))]
        last = [call for call, _ in made[-1]]
        faults = [(fault, call) for call in last if (fault := _unexpected(call, prompt, turns[-1]))]
        missed = [("no_call", _named(prompt, tools))] if expected and not valid and not last else []
        return Observation(
            correct=all(checks),
            events=tuple(missed or [_event(fault, call, prompt, tools) for fault, call in faults]),
            places=tuple(fault.place for fault, _ in faults),
            num_calls=len(last),
        )

    def _run(self, call: Call | BrokenCall) -> tuple[str, _Fault | None]:
        """The result of a call without a fault; a fault if its function raises or hangs."""
        assert isinstance(call, Call)
        if self.functions is None:
            return CHECKED, None
        try:
            return self.functions.call(call.name, call.arguments), None
        except ToolError as error:
            return f"error: {error}", _Fault("failed_call", str(error), call.name_place)


def states(text: str, reference: str) -> bool:
    """Whether a message's final answer is the reference, or the reference stands in it as whole words or numbers."""
    said, wanted = (" ".join(without_thoughts(t).casefold().split()) for t in (text, reference))
    found = re.search(rf"(?<![\w.,-]){re.escape(wanted)}(?!\w|[.,]\d)", said)
    return bool(wanted and found) or answers_match(text, reference)


@lru_cache(maxsize=1024)
def _tools(schemas: str) -> dict[str, Tool]:
    """The tools of a prompt by name, from a JSON list of schemas."""
    tools = [Tool.read(schema) for schema in json.loads(schemas)]
    found = {tool.name: tool for tool in tools}
    if len(found) < len(tools):
        raise ValueError(f"two tools have one name ({', '.join(tool.name for tool in tools)}). Fix: rename one")
    return found


def _fault(call: Call | BrokenCall, prompt: Prompt, tools: dict[str, Tool], text: str) -> _Fault | None:
    if isinstance(call, BrokenCall):
        return _Fault("bad_json", f"not a valid call: {call.error}", call.place)
    if call.name not in tools:
        place = departure(call.name, call.name_place, [one.name for one in _expected(prompt) or ()] or tools)
        return _Fault("unknown_tool", f"no such tool: {call.name}", place)
    if faults := tools[call.name].faults(call, text):
        return _Fault("bad_arguments", "; ".join(fault.error for fault in faults), faults[0].place)
    return None


def _checked(text: str, prompt: Prompt, tools: dict[str, Tool]) -> list[tuple[Call | BrokenCall, _Fault | None]]:
    """The calls of a turn, each with its fault."""
    return [(call, _fault(call, prompt, tools, text)) for call in parse_calls(text)]


def _expected(prompt: Prompt) -> tuple[ExpectedCall, ...] | None:
    """The calls that the row expects; None if it does not say."""
    given = prompt.data.get("calls")
    return None if given is None else read_expected(given)


def _unexpected(call: Call | BrokenCall, prompt: Prompt, text: str) -> _Fault | None:
    """The fault of a valid call that is none of those that the row expects, if it says which."""
    expected = _expected(prompt)
    if expected is None or not isinstance(call, Call):
        return None
    if any(one.is_met(call) for one in expected):
        return None
    meant = next((one for one in expected if one.name == call.name), None)
    if meant is None:
        place = departure(call.name, call.name_place, [one.name for one in expected])
        return _Fault("wrong_call", f"another call is expected: {call.name}", place)
    other = meant.first_other(call)
    place = place_of(text, call.arguments_place, [] if other is None else [other])
    return _Fault("wrong_call", f"other arguments are expected: {call.name}", place)


def _event(
    fault: _Fault, call: Call | BrokenCall, prompt: Prompt, tools: dict[str, Tool]
) -> tuple[str, Mapping[str, str]]:
    """An event; a call that could be run has a ``function``, and one that could not a ``tool``, which is counted."""
    named = "function" if fault.kind in RAN else "tool"
    return fault.kind, {named: _name(call), "error": fault.error, **_named(prompt, tools)}


def _named(prompt: Prompt, tools: dict[str, Tool]) -> dict[str, str]:
    """The signatures of all tools, and of those that the row expects a call of; all again if it expects none."""
    expected = {call.name for call in _expected(prompt) or ()}
    listed = [tool.signature for tool in tools.values()]
    wanted = [tool.signature for tool in tools.values() if tool.name in expected]
    return {"tools": ", ".join(listed), "expected": ", ".join(wanted or listed)}


def _name(call: Call | BrokenCall) -> str:
    return call.name if isinstance(call, Call) else ""


def _messages(calls: Sequence[Call | BrokenCall], results: Sequence[str], role: str) -> list[Message]:
    """The results in the template's tool role, one message each, or as one message of another role."""
    texts = [_encodable(result) for result in results]
    if role != "tool":
        content = "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in texts)
        return [{"role": role, "content": content}]
    messages: list[Message] = []
    for number, (call, text) in enumerate(zip(calls, texts, strict=True)):
        id = call.id if isinstance(call, Call) else None  # Mistral demands one of nine characters
        named = {"name": _encodable(call.name)} if isinstance(call, Call) else {}
        messages.append({"role": "tool", "content": text, "tool_call_id": id or f"call{number:05}", **named})
    return messages


def _encodable(text: str) -> str:
    """A text without lone surrogates, which JSON can hold and no tokenizer takes."""
    return text.encode(errors="replace").decode()
