"""Checks that what a chat template renders holds what the prompts hold."""

from __future__ import annotations

import re
from collections.abc import Sequence

from opd.errors import DataError
from opd.models.chat import Chat
from opd.models.messages import content_text
from opd.types import Message, Prompt

_MARKER = "MARKER"


def check_rendering(prompts: Sequence[Prompt], texts: Sequence[str], chat: Chat, *, key: str) -> None:
    """Refuse prompts of which a part does not reach the model.

    A template may trim a text, or leave out thoughts. A message, a call or a tool that leaves no trace is refused, and
    so are arguments that the template does not have.

    Args:
        texts: the renderings of the prompts.
        key: the run file's key, for error messages.

    Raises:
        DataError: the sentence names the prompt and the part.
    """
    known: set[str] = set()
    for prompt, text in zip(prompts, texts, strict=True):
        for name in prompt.chat_template_kwargs.keys() - known:
            if not re.search(
                rf"\b{re.escape(name)}\b", chat.tokenizer.get_chat_template() if chat.has_template else ""
            ):
                raise DataError(
                    f"{key}.chat_template_kwargs: the chat template of '{chat.tokenizer.name_or_path}' has no "
                    f"'{name}'. Fix: correct the name, or leave it out"
                )
            known.add(name)
        lost = _lost(prompt, text, chat)
        if lost:
            raise DataError(
                f"{key}: prompt '{prompt.id}': {lost} does not reach the model, as the chat template of "
                f"'{chat.tokenizer.name_or_path}' leaves it out. Fix: use a role and form that the template renders"
            )
        if not _encodable(text):
            raise DataError(f"{key}: prompt '{prompt.id}' has half of a surrogate pair. Fix: delete it")


def _lost(prompt: Prompt, text: str, chat: Chat) -> str | None:
    """The part of a prompt that its rendering does not hold; None if it holds all of them."""
    for number, message in enumerate(prompt.messages or ()):
        said = content_text(message).strip()
        if said and said not in text and not _renders(prompt, number, chat):
            return f"message {number + 1} ({message['role']})"
        for call in message.get("tool_calls") or ():
            name = _name(call)
            if name and name not in text:
                return f"the call of '{name}' in message {number + 1}"
    missing = [name for tool in prompt.tools or () if (name := _name(tool)) not in text]
    return f"tool '{missing[0]}'" if missing else None


def _renders(prompt: Prompt, number: int, chat: Chat) -> bool:
    """Whether another text in a message's place is rendered; the template may quote the message's own."""
    messages = list(prompt.messages or ())
    messages[number] = {**messages[number], "content": _MARKER}
    return _MARKER in chat.prompt_text(Prompt(prompt.id, tuple(messages), tools=prompt.tools))


def _name(call: Message) -> str:
    """The function's name in a call or a schema."""
    return str(call.get("function", call).get("name", ""))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
