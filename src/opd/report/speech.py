"""The parts of a rollout: thoughts, tool calls and text of the student, and messages inserted between turns.

The parts are found in the text alone, by the marks that chat templates and models use. No torch here.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any

from opd.data.thoughts import blank_thoughts, thoughts
from opd.data.tool_calls import BrokenCall, parse_calls

Part = tuple[str, int, int]
"""Kind, first token, and token after the last."""

Stretch = tuple[str, int, int]
"""The same with characters in place of tokens."""

TEXT, THOUGHT, CALL, FRAME, INSERTED = "text", "thought", "call", "frame", "inserted"

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "model": "assistant", "tool": "tool", "ipython": "tool", "observation": "tool", "function": "tool",
    "environment": "tool", "tool_results": "tool", "tool_response": "tool", "inst": "user",
}  # fmt: skip
"""Roles by the names that templates give them."""

_WORD = re.compile(r"\s*(\w+)(?::|[ \t]*\n|[ \t]+|$)\s*")
_RESULT = re.compile(r"</?tool_response>\s*")
_MARK = re.compile(r"<tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>")
_END = re.compile(r"</tool_call>")
_OPENING = re.compile(r"[\[{]")
_JSON = json.JSONDecoder()


def parts(row: Mapping[str, Any]) -> list[Part]:
    """The parts of a line of ``rollouts.jsonl``; together they are all of its tokens, in order.

    Returns:
        Kinds of the student's turns are ``text``, ``thought`` and ``call``; kinds between turns are a message's role,
        ``inserted`` if it has none, and ``frame`` for what a chat template puts around a message.
    """
    texts, special, turns = row["text"], set(row["special"]), [tuple(turn) for turn in row["turns"]]
    found: list[Part] = []
    for number, (start, stop) in enumerate(turns):
        after = turns[number + 1][0] if number + 1 < len(turns) else len(texts)
        found += _inserted(texts, special, found[-1][2] if found else 0, start)
        between = _inserted(texts, special, stop, after)
        called = any(kind == "tool" for kind, _, _ in between)
        found += [*_turn(texts, special, start, stop, called=called), *between]
    return found or _inserted(texts, special, 0, len(texts))


def _turn(texts: Sequence[str], special: set[int], start: int, stop: int, *, called: bool) -> list[Part]:
    """The parts of one turn; without a mark, a turn that a tool answered is one call."""
    text = "".join(texts[start:stop])
    found = [(THOUGHT, *place) for place in thoughts(text)]
    calls = list(_calls(text))
    if called and not calls:
        last = next((p for p in range(stop, start, -1) if p - 1 not in special), start)
        first, end = (found[-1][2] if found else 0), len("".join(texts[start:last]))
        calls = [(CALL, first, end)] if first < end else []
    return _on_tokens(sorted([*found, *calls], key=lambda s: s[1]), texts, start, stop, TEXT)


def _calls(text: str) -> Iterator[Stretch]:
    """The calls of a turn, with their marks."""
    blank = blank_thoughts(text)
    if marks := list(_MARK.finditer(blank)):
        for mark, following in zip(marks, [*marks[1:], None], strict=True):
            stop = following.start() if following else len(blank)
            end = _END.search(blank, mark.end(), stop)
            yield CALL, mark.start(), end.end() if end else mark.end() + len(blank[mark.end() : stop].rstrip())
        return
    reached = 0
    for call in parse_calls(text):
        start, stop = call.place if isinstance(call, BrokenCall) else _around(blank, reached, call.name_place)
        if stop > reached:
            yield CALL, start, stop
            reached = stop


def _around(text: str, reached: int, place: tuple[int, int]) -> tuple[int, int]:
    """The JSON value around a place."""
    for opening in _OPENING.finditer(text, reached, place[0]):
        with suppress(ValueError, RecursionError):
            stop = _JSON.raw_decode(text, opening.start())[1]
            if stop >= place[1]:
                return opening.start(), stop
    return place


def _inserted(texts: Sequence[str], special: set[int], start: int, stop: int) -> list[Part]:
    """The messages between two turns, each with its role, and the template's frame around them."""
    found: list[Part] = []
    role, at = "", start
    while at < stop:
        if at in special:
            role = ROLES.get(re.sub(r"\W", "", texts[at]).lower(), role)
            found.append((FRAME, at, at + 1))
            at += 1
            continue
        end = next((p for p in range(at, stop) if p in special), stop)
        text = "".join(texts[at:end])
        shown, named = _message(text, role)
        # The assistant's part here is how a template begins the next turn, such as an empty thought.
        stretches = [(named or INSERTED, *shown)] if shown[1] > shown[0] and named != "assistant" else []
        found += _on_tokens(stretches, texts, at, end, FRAME)
        role = "" if stretches else named
        at = end
    return _merged(found)


def _message(text: str, role: str) -> tuple[tuple[int, int], str]:
    """The place of a message's content in a text between two special tokens, and its role."""
    start, stop = 0, len(text)
    word = _WORD.match(text)
    if word and word[1].lower() in ROLES:
        role, start = ROLES[word[1].lower()], word.end()
    while opening := _RESULT.match(text, start):
        role, start = "tool", opening.end()
    body = text[start:stop].rstrip()
    while body.endswith("</tool_response>"):
        body = body.removesuffix("</tool_response>").rstrip()
    start += len(body) - len(body.lstrip())
    return (start, start + len(body.strip())), role


def _on_tokens(stretches: Sequence[Stretch], texts: Sequence[str], start: int, stop: int, rest: str) -> list[Part]:
    """Stretches of a text as ranges of its tokens; a token belongs to the stretch that it begins in."""
    ends = [0, *accumulate(len(text) for text in texts[start:stop])]
    found: list[Part] = []
    at = start
    for kind, first, last in stretches:
        a = start + max(bisect_right(ends, first) - 1, 0)
        b = start + next((n for n, end in enumerate(ends) if end >= last), stop - start)
        a = max(a, at)
        if b <= a:
            continue
        if a > at:
            found.append((rest, at, a))
        found.append((kind, a, b))
        at = b
    if at < stop:
        found.append((rest, at, stop))
    return found


def _merged(found: Sequence[Part]) -> list[Part]:
    """The same parts with neighbours of one kind joined."""
    joined: list[Part] = []
    for kind, start, stop in found:
        if joined and joined[-1][0] == kind == FRAME:
            joined[-1] = (kind, joined[-1][1], stop)
        else:
            joined.append((kind, start, stop))
    return joined
