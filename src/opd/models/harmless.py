"""Texts of models, servers and environments, made unable to end a turn or to open another. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from opd.types import Message

KEPT = frozenset({"role"})
"""Fields of a message that no model or server writes."""


PASSES = 8
"""Most passes over a text; the space in a token may leave or make another one."""


class Harmless:
    """Writes the special tokens of a tokenizer with a space after their first letter, wherever they are plain text.

    Tokens are found as the tokenizer would find them: some tokenizers normalize a text first, so that full-width
    characters become a special token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def message(self, message: Message) -> Message:
        """A message with harmless texts in every field but its role."""
        return {key: value if key in KEPT else self._tree(value) for key, value in message.items()}

    def text(self, text: str) -> str:
        """The text with its special tokens written out."""
        if not self._special:
            return text
        safe = self._without(text)
        if self._normalize is not None and re.search(self._special, normal := self._normalize(safe)):
            safe = self._without(normal)
        return safe

    def _without(self, text: str) -> str:
        """The text with its special tokens written out, also those that lie inside others or have spaces."""
        for _ in range(PASSES):
            text, found = re.subn(self._special, _apart, text)
            if not found:
                return text
        return re.sub(self._special, "\ufffd", text)

    def _tree(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self._tree(key): self._tree(inner) for key, inner in value.items()}
        return [self._tree(inner) for inner in value] if isinstance(value, list | tuple) else value

    @cached_property
    def _special(self) -> str:
        """A pattern of the special tokens' texts; empty without any."""
        added = self.tokenizer.added_tokens_decoder.values()
        texts = {*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        texts |= {self._normalize(text) for text in texts} if self._normalize else set()
        return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True) if text.strip())

    @cached_property
    def _normalize(self) -> Any:
        """What the tokenizer does to a text before it looks for special tokens; None for nothing."""
        added = self.tokenizer.added_tokens_decoder.values()
        normalizer: Any = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "normalizer", None)
        found = normalizer is not None and any(token.special and token.normalized for token in added)
        return normalizer.normalize_str if found else None


def _apart(found: re.Match[str]) -> str:
    """A special token with a space after its first letter; a space for one that is a single letter."""
    before, letters = found[0][: -len(found[0].lstrip())], found[0].lstrip()
    return f"{before}{letters[0]} {letters[1:]}" if len(letters.rstrip()) > 1 else " "
