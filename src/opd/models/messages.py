"""Messages in the forms that a chat template renders.

Chat APIs log contents as strings, lists of parts or null, and the arguments of tool calls as objects or as JSON text.
Templates differ in the forms that they render, so each form is tried once, and translated if it does not come through.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from opd.types import Message, Prompt

_MARKER = "MARKER"
_ARGUMENTS = {"a": _MARKER}
_JSON = json.dumps(_ARGUMENTS)


def content_text(message: Message) -> str:
    """The text of a message's content; empty if there is none."""
    content = message.get("content")
    if isinstance(content, list | tuple):
        return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)
    return "" if content is None else str(content)


def lines_of(prompt: Prompt) -> list[str]:
    """A prompt for a person or a hint author: a line for the tools, and one per message, tool calls included."""
    if prompt.messages is None:
        return [f"user: {prompt.text}"]
    lines = [f"tools: {_dumped(list(prompt.tools))}"] if prompt.tools else []
    for message in prompt.messages:
        calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
        written = [part for part in (content_text(message), *(_dumped(call) for call in calls)) if part]
        lines.append(f"{message['role']}: {' '.join(written)}")
    return lines


class MessageForms:
    """Translates messages into the forms that a template renders.

    Args:
        render: the template's rendering of a conversation; None if it refuses it.
    """

    def __init__(self, render: Callable[[Sequence[Message]], str | None]) -> None:
        self.render = render

    def __call__(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The same conversation, as plain dictionaries."""
        return [self._translated(message) for message in messages]

    def _translated(self, message: Message) -> dict[str, Any]:
        given = {name: value for name, value in message.items() if value is not None}
        content = given.get("content")
        if isinstance(content, str):
            if not self._takes_strings:
                given["content"] = [{"type": "text", "text": content}]
        elif isinstance(content, list | tuple):
            parts = [{"type": "text", "text": part} if isinstance(part, str) else dict(part) for part in content]
            given["content"] = parts if self._takes_parts else content_text(message)
        elif content is None and not self._takes_calls_alone:
            given["content"] = ""
        if given.get("tool_calls"):
            given["tool_calls"] = [self._call(call) for call in given["tool_calls"]]
        return given

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": self._call(call["function"])}
        arguments, (objects, texts) = call.get("arguments"), self._takes_arguments
        if isinstance(arguments, str) and not texts and (parsed := _object(arguments)) is not None:
            return {**call, "arguments": parsed}
        if isinstance(arguments, Mapping) and texts and not objects:
            return {**call, "arguments": _dumped(arguments)}
        return dict(call)

    @cached_property
    def _takes_strings(self) -> bool:
        """Whether a string comes through; templates of image models may render lists of parts alone."""
        text = self.render([{"role": "user", "content": _MARKER}])
        return text is None or _MARKER in text or _MARKER not in (self._parts or "")

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether a list of parts renders as its text does, or is the only form that comes through."""
        text = self.render([{"role": "user", "content": _MARKER}])
        return self._parts is not None and (self._parts == text or not self._takes_strings)

    @cached_property
    def _parts(self) -> str | None:
        return self.render([{"role": "user", "content": [{"type": "text", "text": _MARKER}]}])

    @cached_property
    def _takes_calls_alone(self) -> bool:
        """Whether a message with calls may lack its content."""
        return any(self.render(_with_call(None, arguments)) is not None for arguments in (_ARGUMENTS, _JSON))

    @cached_property
    def _takes_arguments(self) -> tuple[bool, bool]:
        """Whether objects, and whether JSON texts, render as JSON or as the template's own form of it."""
        objects, text = self.render(_with_call("", _ARGUMENTS)), self.render(_with_call("", _JSON))
        return objects is not None and repr(_ARGUMENTS) not in objects, text is not None and _JSON in text


def _with_call(content: str | None, arguments: Any) -> list[Message]:
    call = {"type": "function", "id": "call00000", "function": {"name": "f", "arguments": arguments}}
    said = {} if content is None else {"content": content}
    return [{"role": "user", "content": "a"}, {"role": "assistant", **said, "tool_calls": [call]}]


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object in a text; None if it is something else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
