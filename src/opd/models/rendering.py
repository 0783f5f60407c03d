"""Checks that what a chat template renders holds what the prompts hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from opd.errors import DataError, ModelError
from opd.models.chat import Chat
from opd.models.messages import content_text
from opd.types import Message, Prompt

_MARKER = "MARKER"


def check_rendering(prompts: Sequence[Prompt], texts: Sequence[str], chat: Chat, *, key: str) -> None:
    """Refuse prompts of which a part does not reach the model.

    A template may trim a text, quote it, or leave out thoughts. A message, a call or a tool that leaves no trace is
    refused, and so are arguments that the template does not have.

    Args:
        texts: the renderings of the prompts.
        key: the run file's key, for error messages.

    Raises:
        DataError: the sentence names the prompt and the part.
    """
    checker = _Checker(chat)
    for prompt, text in zip(prompts, texts, strict=True):
        if name := checker.unknown_argument(prompt):
            raise DataError(
                f"{key}.chat_template_kwargs: the chat template of '{chat.tokenizer.name_or_path}' has no "
                f"'{name}'. Fix: correct the name, or leave it out"
            )
        if lost := checker.lost(prompt, text):
            tool = lost.startswith("tool ")
            fix = "leave 'tools' out, or use a model whose template has them" if tool else "use a role that it renders"
            raise DataError(
                f"{key}: prompt '{prompt.id}': {lost} does not reach the model, as the chat template of "
                f"'{chat.tokenizer.name_or_path}' leaves it out. Fix: {fix}"
            )
        if not _encodable(text):
            raise DataError(f"{key}: prompt '{prompt.id}' has half of a surrogate pair. Fix: delete it")


class _Checker:
    """Compares prompts with their renderings by one template."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.known: set[str] = set()
        self.rendered: dict[tuple[str, ...], bool] = {}
        """By the roles of a conversation, whether each of its messages is rendered."""

    def unknown_argument(self, prompt: Prompt) -> str | None:
        """An argument of the prompt's that the template does not read."""
        new = prompt.chat_template_kwargs.keys() - self.known
        template = str(self.chat.tokenizer.get_chat_template()) if new and self.chat.has_template else ""
        self.known |= {name for name in new if re.search(rf"\b{re.escape(name)}\b", template)}
        return next((name for name in prompt.chat_template_kwargs if name not in self.known), None)

    def lost(self, prompt: Prompt, text: str) -> str | None:
        """The part of a prompt that its rendering does not hold; None if it holds all of them."""
        messages = prompt.messages or ()
        roles = tuple(message["role"] for message in messages)
        if roles not in self.rendered:
            self.rendered[roles] = all(self._renders(prompt, number) for number in range(len(messages)))
        for number, message in enumerate(messages):
            said = content_text(message).strip()
            suspect = not self.rendered[roles] or said not in text
            if said and suspect and not self._renders(prompt, number):
                return f"message {number + 1} ({message['role']})"
            for call in message.get("tool_calls") or ():
                if _name(call) not in text:
                    return f"the call of '{_name(call)}' in message {number + 1}"
        missing = [name for tool in prompt.tools or () if (name := _name(tool)) not in text]
        return f"tool '{missing[0]}'" if missing else None

    def _renders(self, prompt: Prompt, number: int) -> bool:
        """Whether a marker in a message's place is rendered; a short text may stand elsewhere by chance."""
        messages = list(prompt.messages or ())
        messages[number] = {**messages[number], "content": _MARKER}
        try:
            return _MARKER in self.chat.prompt_text(replace(prompt, messages=tuple(messages)))
        except ModelError:  # the template wants something else there, so it reads the text
            return True


def _name(call: Message) -> str:
    """The function's name in a call or a schema."""
    return str(call.get("function", call).get("name", ""))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
