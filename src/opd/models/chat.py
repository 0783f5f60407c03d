"""Chat templates: the only module that knows them.

A trajectory is built from token ids that are never decoded and tokenised again, so what a template
puts between two assistant turns has to be known as ids of its own. It is found by rendering a small
conversation around a marker and cutting the text where the marker stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError

from opd.errors import ModelError
from opd.types import Message, Prompt

_MARKER = "MARKER"
_OPENING: tuple[Message, ...] = ({"role": "user", "content": "a"},)


class Chat:
    """A tokenizer with its chat template, if it has one.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @property
    def has_template(self) -> bool:
        return bool(self.tokenizer.chat_template)

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """The tokens a student continues: messages through the template, text as it is.

        Raises:
            ModelError: messages, and the tokenizer has no template or its template refuses them.
        """
        if prompt.messages is not None:
            return self.insert_text_ids(self._render(prompt.messages, generate=True))
        ids = self.tokenizer(prompt.text)["input_ids"]
        # A tokenizer that closes every text would tell the student that nothing follows.
        closed = len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id != self.tokenizer.bos_token_id
        return tuple(ids[:-1] if closed else ids)

    def insert_text_ids(self, text: str) -> tuple[int, ...]:
        """The tokens of a text without any special token around them."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def generation_ids(self) -> tuple[int, ...]:
        """What the template puts in front of an assistant turn."""
        closed, opened = self._render(_OPENING, generate=False), self._render(_OPENING, generate=True)
        return self.insert_text_ids(opened[len(closed) :])

    def message_ids(self, message: Message) -> tuple[int, ...]:
        """What stands between the stop token of an assistant turn and the next turn's first token.

        That is whatever the template puts after the stop token, the message, and the generation prompt.

        Raises:
            ModelError: the template does not allow the message's role there.
        """
        rendered = self._render([*_OPENING, {"role": "assistant", "content": _MARKER}, message], generate=True)
        after = rendered.partition(_MARKER)[2].lstrip(" ")
        return self.insert_text_ids(after.removeprefix(self.tokenizer.eos_token or ""))

    def above_turn(self, history_ids: tuple[int, ...], message: Message) -> tuple[int, ...]:
        """A history that ends in the generation prompt, with a message inserted right before that prompt.

        Without a template the message's text is appended.

        Raises:
            ModelError: the history does not end in the template's generation prompt.
        """
        if not self.has_template:
            return history_ids + self.insert_text_ids(message["content"])
        opening = self.generation_ids
        kept = len(history_ids) - len(opening)
        if history_ids[kept:] != opening:
            raise ModelError(
                "a hint cannot be inserted above this turn: its history does not end in the chat template's generation "
                f"prompt {self.decode(opening, skip_special_tokens=False)!r}"
            )
        return history_ids[:kept] + self._standing_alone(message)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text for people and checkers; nothing is ever trained on it."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def _standing_alone(self, message: Message) -> tuple[int, ...]:
        """A message after a finished one, and the generation prompt; what ends the message before is not repeated."""
        before = self._render(_OPENING, generate=False)
        whole = self._render([*_OPENING, message], generate=True)
        if not whole.startswith(before):
            raise ModelError(
                f"teacher.view.hint.role: the chat template changes what comes before a message of role "
                f"'{message['role']}'; choose another role"
            )
        return self.insert_text_ids(whole[len(before) :])

    def _render(self, messages: Sequence[Message], *, generate: bool) -> str:
        if not self.has_template:
            raise ModelError(
                f"the tokenizer of '{self.tokenizer.name_or_path}' has no chat template, and the prompts are messages; "
                "use a chat model, set tokenizer.chat_template, or give plain 'prompt' strings"
            )
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=generate
            )
        except (TemplateError, ValueError, TypeError) as error:
            roles = ", ".join(m["role"] for m in messages)
            raise ModelError(
                f"the chat template of '{self.tokenizer.name_or_path}' refuses messages of the roles {roles} ({error})"
                "; for hints, set teacher.view.hint.role to one it takes"
            ) from error
        return text
