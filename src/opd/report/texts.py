"""Texts of single tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from opd.teachers.alignment import TokenTexts


class Texts:
    """Decodes tokens one by one; special tokens are shown by name.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special = frozenset(tokenizer.all_special_ids)
        self.texts = TokenTexts(tokenizer)
        self.one = lru_cache(2**16)(self._one)

    def each(self, ids: Sequence[int]) -> list[str]:
        """The text that each token adds; a token that is no complete character is shown by its name."""
        found: list[str] = []
        before: tuple[int, ...] = ()
        for token in ids:
            if token in self.special:
                found.append(self.one(token))
                before = ()
                continue
            text = self.texts.added(before, (token,))
            found.append(self.one(token) if text is None else text)
            before = (token,)
        return found

    def whole(self, ids: Sequence[int]) -> str:
        """The text of all tokens, special tokens included."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _one(self, token: int) -> str:
        text = self.whole([token]) if token < len(self.tokenizer) else ""
        if text and "\ufffd" not in text:
            return text
        return str(self.tokenizer.convert_ids_to_tokens(token) or f"#{token}")


def difference(teacher: Sequence[int], own: Sequence[int]) -> tuple[int, int, int]:
    """The differing range (a, b, c) of two contexts: ``teacher[a:b]`` replaces ``own[a:c]``."""
    shorter = min(len(teacher), len(own))
    start = next((i for i in range(shorter) if teacher[i] != own[i]), shorter)
    room = shorter - start
    end = next((i for i in range(room) if teacher[-1 - i] != own[-1 - i]), room)
    return start, len(teacher) - end, len(own) - end
