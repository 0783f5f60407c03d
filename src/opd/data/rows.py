"""Rows of files, datasets and Python lists as prompts; a broken row is refused with its number."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opd.data.answers import AnswerTask
from opd.errors import DataError
from opd.types import Message, Prompt, Task

COLUMNS = ("prompt", "messages", "answer", "turns", "domain", "id", "tools", "chat_template_kwargs")
"""Columns that opd reads; any other goes into ``Prompt.data`` for the task."""


def from_rows(
    rows: Iterable[Mapping[str, Any]], *, key: str, chat: bool, limit: int | None = None
) -> tuple[list[Prompt], Task | None]:
    """Prompts from mappings with ``prompt`` or ``messages``; see ``load_prompts``."""
    prompts: list[Prompt] = []
    for number, row in enumerate(rows, 1):
        if limit is not None and len(prompts) == limit:
            break
        if not isinstance(row, Mapping):
            raise DataError(
                f"{key}: row {number} is {row!r}. Fix: give a string, or a mapping with 'prompt' or 'messages'"
            )
        prompts.append(_prompt(row, f"{key}: row {number}", number, chat=chat))
    seen: dict[str, int] = {}
    for number, prompt in enumerate(prompts, 1):
        if (first := seen.setdefault(prompt.id, number)) != number:
            raise DataError(
                f"{key}: rows {first} and {number} have the same id '{prompt.id}'. Fix: give each its own id, or none"
            )
    if not prompts:
        raise DataError(f"{key}: there are no prompts. Fix: give rows with 'prompt' or 'messages'")
    return prompts, AnswerTask() if any(p.answer for p in prompts) else None


def _prompt(row: Mapping[str, Any], where: str, number: int, *, chat: bool) -> Prompt:
    text, messages = row.get("prompt"), row.get("messages")
    if (text is None) == (messages is None):
        found = "both" if text is not None else ", ".join(map(repr, row)) or "neither"
        raise DataError(f"{where} has to have either 'prompt' or 'messages', and has {found}. Fix: give one of them")
    turns: tuple[Message, ...] | None = None
    if messages is not None or (isinstance(text, Sequence) and not isinstance(text, str)):
        turns = _messages(text if messages is None else messages, where)
    elif not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: 'prompt' is not a string with text ({text!r}). Fix: write the prompt's text")
    elif chat:
        turns = ({"role": "user", "content": text},)
    tools = _tools(row.get("tools"), where)
    if tools and turns is None:
        raise DataError(
            f"{where} has 'tools', and without a chat template nothing shows them to the student. Fix: leave them out, "
            "or use a chat model"
        )
    solution = row.get("turns")
    if solution is not None and not (isinstance(solution, list) and all(isinstance(t, str) for t in solution)):
        raise DataError(
            f"{where}: 'turns' is not a list of strings. Fix: list the assistant turns of a solution, or leave it out"
        )
    answer, *others = _answers(row.get("answer"), where) or (None,)
    return Prompt(
        id=str(number if row.get("id") is None else row["id"]),
        messages=turns,
        text=None if turns else text,
        answer=answer,
        other_answers=tuple(str(other) for other in others),
        turns=tuple(solution) if solution else None,
        domain=str(row.get("domain") or "default"),
        data={k: v for k, v in row.items() if k not in COLUMNS},
        tools=tools,
        chat_template_kwargs=_kwargs(row.get("chat_template_kwargs"), where),
    )


def _answers(given: Any, where: str) -> tuple[str, ...]:
    """The correct answers of a row: of a list, each."""
    answers = list(given) if isinstance(given, list | tuple) else [given]
    for answer in answers if given is not None else ():
        if not isinstance(answer, str | int | float) or (isinstance(answer, float) and not math.isfinite(answer)):
            raise DataError(
                f"{where}: 'answer' is no text, number or list of them ({answer!r}). Fix: write the correct answer"
            )
    return tuple(str(answer) for answer in answers) if given is not None else ()


def _messages(messages: Any, where: str) -> tuple[Message, ...]:
    valid = isinstance(messages, Sequence) and not isinstance(messages, str) and len(messages) > 0
    if not valid or not all(isinstance(m, Mapping) and isinstance(m.get("role"), str) and m["role"] for m in messages):
        raise DataError(
            f"{where}: 'messages' is not a list of messages. Fix: write [{{'role': …, 'content': …}}, …] with strings"
        )
    if messages[-1]["role"] == "assistant":
        raise DataError(
            f"{where}: 'messages' ends with an assistant turn, and the student writes that turn. Fix: delete it"
        )
    return tuple(_message(m, f"{where}: message {n}") for n, m in enumerate(messages, 1))


def _message(message: Mapping[str, Any], where: str) -> Message:
    """A message with all of its fields, less those that are null."""
    kept = {k: v for k, v in message.items() if v is not None}
    content, calls = kept.get("content"), kept.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls)):
        raise DataError(f"{where}: 'tool_calls' is not a list of calls ({calls!r}). Fix: write a list of mappings")
    if isinstance(content, list):
        for part in content:
            kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
            if kind != "text":
                raise DataError(
                    f"{where} has a part of type '{kind}', and only text is supported. Fix: leave the row out, or "
                    "describe the part in text"
                )
            if not isinstance(part.get("text") if isinstance(part, Mapping) else part, str):
                raise DataError(f"{where} has a part without text ({part!r}). Fix: write {{'type': 'text', 'text': …}}")
    elif not (isinstance(content, str) or (content is None and calls)):
        raise DataError(
            f"{where} ({message['role']}) has no text in 'content' ({content!r}). Fix: write a string, or a list of "
            "text parts; only a message with 'tool_calls' has none"
        )
    return kept


def _tools(given: Any, where: str) -> tuple[Mapping[str, Any], ...] | None:
    """The JSON schemas of a row's tools; also as JSON text, in which form tables hold them."""
    tools = _parsed(given, where, "tools")
    if not tools:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(t, Mapping) and _tool_name(t) for t in tools):
        raise DataError(
            f"{where}: 'tools' is not a list of JSON schemas with a name. Fix: write [{{'type': 'function', "
            "'function': {'name': …, 'description': …, 'parameters': …}}, …]"
        )
    return tuple(tools)


def _tool_name(tool: Mapping[str, Any]) -> Any:
    function = tool.get("function", tool)
    return isinstance(function, Mapping) and isinstance(function.get("name"), str) and function["name"]


def _kwargs(given: Any, where: str) -> dict[str, Any]:
    kwargs = _parsed(given, where, "chat_template_kwargs")
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping):
        raise DataError(
            f"{where}: 'chat_template_kwargs' is no mapping ({kwargs!r}). Fix: write {{'enable_thinking': false}}"
        )
    return dict(kwargs)


def _parsed(given: Any, where: str, column: str) -> Any:
    """A value, or the value of its JSON text."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given) if given.strip() else None
    except ValueError as error:
        raise DataError(f"{where}: '{column}' is no JSON ({error}). Fix: write JSON, or leave it out") from None
