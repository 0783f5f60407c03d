"""Tool calls in an assistant turn, in the forms that models write, with the place of every part in the text.

<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>       Hermes, Qwen
<|python_tag|>{"name": "add", "parameters": {"a": 1}}               Llama 3; several with ";" between them
[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]                Mistral
[TOOL_CALLS]add[ARGS]{"a": 1}                                       Mistral since 2025
{"name": "add", "arguments": {"a": 1}}                              bare, also in a list, a code block or a sentence
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from opd.data.thoughts import blank_thoughts

Place = tuple[int, int]
"""Half-open range of characters of a turn's text."""

_MARK = re.compile(r"<tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>")
_END = re.compile(r"</tool_call>|<\|eom_id\|>|<\|eot_id\|>")
_NAMED = re.compile(r"\s*([\w./:-]+)(?:\[CALL_ID\]\w*)?\[ARGS\]\s*")
_BETWEEN = re.compile(r"(?:[\s;,]|```(?:json)?)*")
_OPENING = re.compile(r"\{\s*[\"']|\[\s*\{")
"""Where an object with keys, or a list of objects, may begin."""
_SPACE = re.compile(r"\s*")
_JSON = json.JSONDecoder()
_ARGUMENTS = ("arguments", "parameters")


@dataclass(frozen=True)
class Call:
    """One call of a tool.

    Attributes:
        name: of the tool, which need not exist.
        arguments: as they were written.
        id: the call's own id, if it has one.
        name_place: where the name stands, without its quotes.
        arguments_place: where the arguments' JSON object stands; the whole call if there is none.
    """

    name: str
    arguments: Mapping[str, Any]
    id: str | None
    name_place: Place
    arguments_place: Place


@dataclass(frozen=True)
class BrokenCall:
    """Something that is meant as a call and is none: the fault, and where it stands."""

    error: str
    place: Place


def parse_calls(text: str) -> list[Call | BrokenCall]:
    """The calls of an assistant turn in order, thoughts left out; none if the turn is a plain message."""
    blank = blank_thoughts(text)
    marks = [mark for mark in _MARK.finditer(text) if not blank[mark.start()].isspace()]
    if not marks:
        return list(_bare(text, blank))
    found: list[Call | BrokenCall] = []
    read = 0
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        if mark.start() < read:
            continue
        stop = following.start() if following else len(text)
        end = _END.search(text, mark.end(), stop)
        cut = end.start() if end else stop
        calls = list(_marked(text[:cut], mark.end(), mark.start()))
        if cut < len(text) and not _valid(calls) and _valid(whole := list(_marked(text, mark.end(), mark.start()))):
            calls, read = whole, max(call.arguments_place[1] for call in whole if isinstance(call, Call))
        found += calls
    return found


def place_of(text: str, place: Place, path: Sequence[str | int], *, key: bool = False) -> Place:
    """Where a value inside the JSON value at a place stands, as far down its path as the text has it.

    Args:
        path: keys and indices.
        key: where the last key stands, instead of its value.
    """
    for number, step in enumerate(path):
        if text[place[0]] not in "{[" or step not in (children := _children(text, place[0])):
            return place
        place = children[step][0 if key and number == len(path) - 1 else 1]
    return place


def departure(name: str, place: Place, others: Iterable[str]) -> Place:
    """The part of a name that no other name has at its place; the character behind it if it begins another name."""
    alike = (takewhile(lambda pair: pair[0] == pair[1], zip(name, other, strict=False)) for other in others)
    shared = max((sum(1 for _ in pairs) for pairs in alike), default=0)
    return place[0] + shared, max(place[1], place[0] + shared + 1)


def _valid(calls: Sequence[Call | BrokenCall]) -> bool:
    """Whether no call is broken; one that has a mark inside a text of its arguments is, where it is cut at the mark."""
    return all(isinstance(call, Call) for call in calls) and bool(calls)


def _marked(text: str, start: int, mark: int) -> Iterator[Call | BrokenCall]:
    """The calls between a mark and the end of the text."""
    if named := _NAMED.match(text, start):
        yield from _named(text, named)
        return
    number = 0
    while (at := _BETWEEN.match(text, start).end()) < len(text) and text[at] in "{[":  # type: ignore[union-attr]
        value, start = _decoded(text, at)
        if isinstance(value, BrokenCall):
            yield value
            return
        yield from _calls(text, value, (at, start))
        number += 1
    if not number:
        yield BrokenCall("a call is a JSON object with name and arguments", (mark, max(len(text.rstrip()), start)))


def _named(text: str, named: re.Match[str]) -> Iterator[Call | BrokenCall]:
    """A call whose name stands before its arguments."""
    arguments, stop = _decoded(text, named.end())
    if isinstance(arguments, BrokenCall):
        yield arguments
    elif isinstance(arguments, dict):
        yield Call(named[1], arguments, None, named.span(1), (named.end(), stop))
    else:
        yield BrokenCall("arguments are no JSON object", (named.end(), stop))


def _bare(text: str, blank: str) -> Iterator[Call | BrokenCall]:
    """Calls without a mark: JSON values that look like calls, or a text that begins like one and is no JSON.

    Args:
        blank: the text with spaces in place of its thoughts.
    """
    start = number = 0
    while opening := _OPENING.search(blank, start):
        at = opening.start()
        value, stop = _decoded(text, at)
        if isinstance(value, BrokenCall):
            if not number and not blank[:at].replace("```json", "").strip(" \t\n`") and _is_meant(text[at:]):
                yield value
                return
            start = at + 1
        elif _looks_like_calls(value):
            yield from _calls(text, value, (at, stop))
            number, start = number + 1, stop
        else:
            start = at + 1 if isinstance(value, list | dict) else stop


def _decoded(text: str, at: int) -> tuple[Any, int]:
    """The JSON value at a position and its end; a ``BrokenCall`` if there is none."""
    try:
        return _JSON.raw_decode(text, at)
    except json.JSONDecodeError as error:
        return BrokenCall(error.msg, (min(error.pos, len(text) - 1), len(text))), len(text)
    except (RecursionError, ValueError) as error:  # too deep, or a number of thousands of digits
        return BrokenCall(str(error), (min(at, len(text) - 1), len(text))), len(text)


def _is_meant(text: str) -> bool:
    """Whether a text that is no JSON was meant as a call."""
    return bool(re.match(r"[{\[\s]*[\"']name[\"']\s*:", text))


def _looks_like_calls(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_looks_like_calls(one) for one in value)
    if not isinstance(value, dict):
        return False
    call = _function(value)
    return isinstance(call.get("name"), str) and any(name in call for name in _ARGUMENTS)


def _function(value: dict[str, Any]) -> dict[str, Any]:
    """The call inside ``{"type": "function", "function": {…}}``."""
    inner = value.get("function")
    return inner if isinstance(inner, dict) and "name" not in value else value


def _calls(text: str, value: Any, place: Place) -> Iterator[Call | BrokenCall]:
    """The calls in a JSON value: an object or a list of them."""
    if isinstance(value, list):
        for index, one in enumerate(value):
            yield from _calls(text, one, place_of(text, place, [index]))
        return
    if not isinstance(value, dict):
        yield BrokenCall("a call is a JSON object with name and arguments", place)
        return
    inner = _function(value)
    if inner is not value:
        place = place_of(text, place, ["function"])
    yield _call(text, inner, place, value.get("id"))


def _call(text: str, value: dict[str, Any], place: Place, id: Any) -> Call | BrokenCall:
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return BrokenCall("the call has no name", place_of(text, place, ["name"]))
    start, stop = place_of(text, place, ["name"])
    key = next((key for key in _ARGUMENTS if value.get(key) is not None), None)
    arguments = value.get(key, {}) if key else {}
    arguments_place = place_of(text, place, [key] if key else [])
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return BrokenCall(f"{key} are no JSON object", arguments_place)
    if not isinstance(arguments, dict):
        return BrokenCall(f"{key} are no JSON object", arguments_place)
    return Call(name, arguments, id if isinstance(id, str) else None, (start + 1, stop - 1), arguments_place)


def _children(text: str, start: int) -> dict[str | int, tuple[Place, Place]]:
    """Of the JSON object or list that begins at a position: the place of each key (or item), and of its value."""
    found: dict[str | int, tuple[Place, Place]] = {}
    at = _after_space(text, start + 1)
    while text[at] not in "}]":
        key: str | int = len(found)
        key_place = None
        if text[start] == "{":
            key, end = _JSON.raw_decode(text, at)
            key_place, at = (at, end), _after_space(text, _after_space(text, end) + 1)
        _, end = _JSON.raw_decode(text, at)
        found[key] = (key_place or (at, end), (at, end))
        at = _after_space(text, end)
        at = _after_space(text, at + 1) if text[at] == "," else at
    return found


def _after_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start
