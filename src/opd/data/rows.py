"""Rows of files, datasets and Python lists as prompts; a broken row is refused with its number."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from itertools import islice
from numbers import Number, Real
from typing import Any

from opd.config.run import COLUMNS
from opd.data.answers import AnswerTask
from opd.data.strict_json import parse
from opd.errors import DataError
from opd.models.messages import content_text
from opd.types import Message, Prompt, Task

ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}
"""Roles of ShareGPT data by their usual names."""

USUAL = {
    "prompt": ("question", "problem", "instruction", "query", "input", "text"),
    "messages": ("conversations", "conversation", "dialog", "chat"),
}
"""Names that other data sets have for a column, for the advice in an error."""

SHOWN = 8
"""Most names listed in a note."""

Note = Callable[[str], None]
"""Takes a sentence about the prompts that is reported once per run."""


def ignore(note: str) -> None:
    """Report nothing."""


def from_rows(
    rows: Iterable[Any],
    *,
    key: str,
    chat: bool,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    note: Note = ignore,
) -> tuple[list[Prompt], Task | None]:
    """Prompts from strings, mappings with ``prompt`` or ``messages``, and ``Prompt`` objects; see ``load_prompts``.

    Args:
        columns: the rows' names for columns.
        note: reports left out turns and columns that are not read.
    """
    reader = _Reader(key, chat, dict(columns or {}))
    prompts = [reader.prompt(row, number) for number, row in enumerate(islice(rows, limit), 1)]
    if not prompts:
        raise DataError(f"{key}: there are no prompts. Fix: give rows with 'prompt' or 'messages'")
    reader.report(note)
    return prompts, AnswerTask() if any(p.answers for p in prompts) else None


def check_prompt(prompt: Any, where: str) -> Prompt:
    """A ``Prompt`` object, held to what rows are held to.

    Raises:
        DataError: it is none, or one of its fields is of another form.
    """
    if not isinstance(prompt, Prompt):
        raise DataError(f"{where} is {prompt!r}, which is no prompt. Fix: give an opd.Prompt")
    _check_text({field.name: getattr(prompt, field.name) for field in fields(prompt)}, where)
    if (prompt.messages is None) == (prompt.text is None):
        has = "neither" if prompt.text is None else "both"
        raise DataError(f"{where}: a Prompt has either messages or text, and this one has {has}. Fix: give one of them")
    if prompt.messages is None and not (isinstance(prompt.text, str) and prompt.text.strip()):
        raise DataError(f"{where}: the text of a Prompt is not a string with text ({prompt.text!r}). Fix: write it")
    if prompt.messages is not None and _messages(prompt.messages, where)[1] is not None:
        raise DataError(f"{where}: its messages end with the assistant. Fix: leave that turn out, or give it as answer")
    _tools(prompt.tools, where)
    texts = {"id": prompt.id, "domain": prompt.domain}
    texts |= {"answer": prompt.answer} if prompt.answer is not None else {}
    texts |= {f"other_answers[{n}]": answer for n, answer in enumerate(prompt.other_answers)}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise DataError(f"{where}: {name} of a Prompt is {text!r}, which is no string. Fix: write it as one")
    for name in ("data", "chat_template_kwargs"):
        if not isinstance(getattr(prompt, name), Mapping):
            raise DataError(f"{where}: {name} of a Prompt is no mapping. Fix: give one, such as {{}}")
    return prompt


class _Reader:
    """Makes prompts of rows, and notes what it left out.

    Args:
        key: for error messages.
        chat: a plain string becomes a user message.
        names: the rows' names for columns.
    """

    def __init__(self, key: str, chat: bool, names: Mapping[str, str]) -> None:
        self.key = key
        self.chat = chat
        self.names = names
        self.unread: dict[str, None] = {}
        self.missing = {column: name for column, name in names.items() if column not in ("prompt", "messages")}
        self.found: dict[str, None] = {}
        self.endings = 0

    def prompt(self, row: Any, number: int) -> Prompt:
        """The prompt of a row.

        Raises:
            DataError: the row is broken.
        """
        where = f"{self.key}: row {number}"
        if isinstance(row, Prompt):
            return check_prompt(row, where)
        if isinstance(row, str):
            row = {"prompt": row}
        if not isinstance(row, Mapping):
            raise DataError(f"{where} is {row!r}. Fix: give a string, or a mapping with 'prompt' or 'messages'")
        _check_text(row, where)
        values, rest = self._columns(row)
        text, messages = values.get("prompt"), _listing(values.get("messages"), where, "messages")
        if (text is None) == (messages is None):
            raise DataError(f"{where} has to have either 'prompt' or 'messages', and has {self._sources(row)}")
        ending = None
        turns: tuple[Message, ...] | None = None
        if messages is not None or (isinstance(text, Sequence) and not isinstance(text, str)):
            turns, ending = _messages(text if messages is None else messages, where)
            self.endings += ending is not None
        elif not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: 'prompt' is not a string with text ({text!r}). Fix: write the prompt's text")
        elif self.chat:
            turns = ({"role": "user", "content": text},)
        tools = _tools(values.get("tools"), where)
        if tools and turns is None:
            raise DataError(
                f"{where} has 'tools', and without a chat template nothing shows them to the student. Fix: leave them "
                "out, or use a chat model"
            )
        answer, *others = _answers(values.get("answer"), where) or (ending or None,)
        return Prompt(
            id=str(number if values.get("id") in (None, "") else values["id"]),
            messages=turns,
            text=None if turns else text,
            answer=answer,
            other_answers=tuple(str(other) for other in others),
            turns=_solution(_listing(values.get("turns"), where, "turns"), where),
            domain=_domain(values.get("domain"), where),
            data=rest,
            tools=tools,
            chat_template_kwargs=_kwargs(values.get("chat_template_kwargs"), where),
        )

    def report(self, note: Note) -> None:
        """Report left out turns and unread columns.

        Raises:
            DataError: a name of ``columns`` is in no row.
        """
        for column, name in self.missing.items() if self.found else ():
            raise DataError(
                f"{self.key}.columns.{column}: no row has '{name}' (they have {_listed(self.found)}). Fix: correct the "
                "name"
            )
        if self.endings:
            note(
                f"{self.key}: {self.endings} conversations end with the assistant; that turn is left out, and is the "
                "reference answer where there is no other"
            )
        if self.unread:
            note(f"{self.key}: columns that only tasks, rewards and templates read: {_listed(self.unread)}")

    def _columns(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """A row's columns that opd reads, and the others."""
        given = {column: name for column, name in self.names.items() if _head(row, name) in row}
        values = {column: _entry(row, name) for column, name in given.items()}
        self.missing = {column: name for column, name in self.missing.items() if column not in given}
        taken = set(given.values())
        mapped = {*self.names, *({"prompt", "messages"} if self.names.keys() & {"prompt", "messages"} else ())}
        for column in row.keys() & set(COLUMNS) - mapped - taken:
            values[column] = row[column]
            taken.add(column)
        rest = {name: value for name, value in row.items() if name not in taken}
        heads = {_head(row, name) for name in given.values()}
        self.unread.update(dict.fromkeys(name for name in rest if name not in heads))
        self.found.update(dict.fromkeys(row))
        return values, rest

    def _sources(self, row: Mapping[str, Any]) -> str:
        """The rest of the sentence about a row without a prompt, or with two."""
        if row.get("prompt") is not None and row.get("messages") is not None:
            return f"both. Fix: choose one, as in {self.key}.columns={{messages: messages}}"
        absent = [(column, self.names[column]) for column in ("prompt", "messages") if column in self.names]
        if absent:
            column, name = absent[0]
            return (
                f"the columns {_listed(row)}, without the '{name}' of {self.key}.columns. Fix: correct "
                f"{self.key}.columns.{column}, or leave it out"
            )
        usual = [(column, name) for column, names in USUAL.items() for name in names if name in row]
        column, name = usual[0] if usual else ("prompt", "NAME")
        return f"the columns {_listed(row)}. Fix: name the right one, as in {self.key}.columns={{{column}: {name}}}"


def _head(row: Mapping[str, Any], name: str) -> str:
    """The column that a name of ``columns`` is in."""
    return name if name in row else name.partition(".")[0]


def _entry(row: Mapping[str, Any], name: str) -> Any:
    """A column, or for ``a.b`` the entry b of the column a."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _listed(names: Iterable[str]) -> str:
    listed = list(map(repr, names))
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return (", ".join(listed[:SHOWN]) or "none") + more


def _check_text(row: Mapping[str, Any], where: str) -> None:
    """Refuse half of a surrogate pair, which no tokenizer encodes.

    Raises:
        DataError: there is one in a text of the row.
    """
    try:
        json.dumps(row, ensure_ascii=False, default=lambda _: None, skipkeys=True).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DataError(
            f"{where} has half of a surrogate pair ({half!r}), which is no character. Fix: delete it, or write the "
            "whole pair"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no plain data ({error}). Fix: correct the row") from None


def _domain(given: Any, where: str) -> str:
    if given is None or given == "":
        return "default"
    if not isinstance(given, str | int):
        raise DataError(f"{where}: 'domain' is no text ({given!r}). Fix: write one name")
    return str(given)


def _solution(given: Any, where: str) -> tuple[str, ...] | None:
    if given is not None and not (isinstance(given, list) and all(isinstance(t, str) for t in given)):
        raise DataError(
            f"{where}: 'turns' is not a list of strings. Fix: list the assistant turns of a solution, or leave it out"
        )
    return tuple(given) if given else None


def _answers(given: Any, where: str) -> tuple[str, ...]:
    """The correct answers of a row: of a list, each; an empty text is none."""
    answers = [_said(one) for one in given] if isinstance(given, list | tuple) else [given]
    answers = [answer for answer in answers if not (isinstance(answer, str) and not answer.strip())]
    for answer in answers if given is not None else ():
        if not isinstance(answer, str | Number) or (isinstance(answer, Real | Decimal) and not math.isfinite(answer)):
            raise DataError(
                f"{where}: 'answer' is no text, number or list of them ({answer!r}). Fix: write the correct answer, or "
                "null for none"
            )
    return tuple(str(answer) for answer in answers) if given is not None else ()


def _said(answer: Any) -> Any:
    """The text of an answer that is an assistant message, as in conversational ``completion`` columns."""
    return content_text(answer) if isinstance(answer, Mapping) and answer.get("role") == "assistant" else answer


def _messages(messages: Any, where: str) -> tuple[tuple[Message, ...], str | None]:
    """A conversation without a last turn of the assistant's, and the text of that turn; None if there is none."""
    if isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], list):
        messages = messages[0]  # a list of exchanges, as in BFCL, of which there is one
    valid = isinstance(messages, Sequence) and not isinstance(messages, str) and len(messages) > 0
    usual = [_usual(m) if isinstance(m, Mapping) else {} for m in messages] if valid else []
    if not valid or not all(isinstance(m.get("role"), str) and m["role"] for m in usual):
        raise DataError(
            f"{where}: 'messages' is not a list of messages. Fix: write [{{'role': …, 'content': …}}, …] with strings"
        )
    turns = tuple(_message(m, f"{where}: message {n}") for n, m in enumerate(usual, 1))
    if turns[-1]["role"] != "assistant":
        return turns, None
    *before, last = turns
    if not before or before[-1]["role"] == "assistant":
        raise DataError(
            f"{where}: 'messages' has nothing to answer before the assistant's last turn. Fix: add a user message, or "
            "delete the row"
        )
    return tuple(before), content_text(last)


def _usual(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message by its usual names: ShareGPT's ``from``, ``value``, ``human`` and ``gpt`` are translated."""
    kept = {k: v for k, v in message.items() if v is not None}
    if "role" not in kept and "from" in kept:
        kept["role"] = kept.pop("from")
        kept["content"] = kept.pop("value", None)
    role = kept.get("role")
    return {**kept, "role": ROLES.get(role, role)} if isinstance(role, str) else kept


def _names_function(call: Any) -> bool:
    """Whether it is a call in one of both forms: with the function inside, or flat."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str)


def _message(message: Mapping[str, Any], where: str) -> Message:
    """A message as it is, if its content and calls are of a known form."""
    content, calls = message.get("content"), message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(map(_names_function, calls))):
        raise DataError(
            f"{where}: 'tool_calls' is not a list of calls ({calls!r}). Fix: write a list of mappings such as "
            "{'function': {'name': …, 'arguments': {…}}}"
        )
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
    if message["role"] == "user" and not content_text(message).strip():
        raise DataError(f"{where} (user) is empty. Fix: write its text, or delete the row")
    return message


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


def _listing(given: Any, where: str, column: str) -> Any:
    """A value, or the list of its JSON text, in which form a CSV file holds it."""
    return _parsed(given, where, column) if isinstance(given, str) and given.lstrip().startswith("[") else given


def _parsed(given: Any, where: str, column: str) -> Any:
    """A value, or the value of its JSON text."""
    if not isinstance(given, str):
        return given
    try:
        return parse(given) if given.strip() else None
    except ValueError as error:
        raise DataError(f"{where}: '{column}' is no JSON ({error}). Fix: write JSON, or leave it out") from None
