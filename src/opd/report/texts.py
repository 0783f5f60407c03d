"""Texts of single tokens."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from opd.teachers.alignment import BROKEN, TokenTexts

BYTES = "⟨⟩"
"""The marks around bytes that complete no character."""

MOST_JOINED = 16
"""Largest number of tokens in a row whose bytes are joined; a longer row is no text."""


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

    def each(self, ids: Sequence[int]) -> tuple[list[str], dict[int, str]]:
        """The text that each token adds, and the bytes of the tokens that hold a part of a character.

        A character whose bytes are spread over several tokens is the text of the token that completes it, and the
        tokens before it have no text. Bytes that complete no character are shown as bytes.

        Returns:
            The texts, and by position the bytes in hexadecimal, such as ``E4 BD``.
        """
        found: list[str] = []
        parts: dict[int, str] = {}
        before: tuple[int, ...] = ()
        row: tuple[int, ...] = ()  # tokens whose last character is still open
        for token in ids:
            if token in self.special:
                found += [*self._separate(row, parts, len(found)), self.one(token)]
                before = row = ()
                continue
            row += (token,)
            text = self.texts.added(before, row)
            if text is None and len(row) < MOST_JOINED:
                continue
            if len(row) == 1 and text is not None:
                found.append(self.one(token) if BROKEN in text else text)
            else:
                found += self._joined(row, text, parts, len(found))
            before, row = row, ()
        return found + self._separate(row, parts, len(found)), parts

    def whole(self, ids: Sequence[int]) -> str:
        """The text of all tokens, special tokens included."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _joined(self, row: tuple[int, ...], text: str | None, parts: dict[int, str], start: int) -> list[str]:
        """The characters of some tokens, each at the token that completes it."""
        raw = [self._bytes(token) for token in row]
        if text is None or BROKEN in text or None in raw:
            return self._separate(row, parts, start)
        reader = codecs.getincrementaldecoder("utf-8")()
        shown = [reader.decode(piece or b"") for piece in raw]
        if "".join(shown) != text:
            return self._separate(row, parts, start)
        parts |= {start + n: piece.hex(" ").upper() for n, piece in enumerate(raw) if piece is not None}
        return shown

    def _separate(self, row: tuple[int, ...], parts: dict[int, str], start: int) -> list[str]:
        """Tokens that complete no character together, each alone."""
        shown = [self.one(token) for token in row]
        for n, (token, text) in enumerate(zip(row, shown, strict=True)):
            if BYTES[0] in text and (raw := self._bytes(token)):
                parts[start + n] = raw.hex(" ").upper()
        return shown

    def _one(self, token: int) -> str:
        text = self.whole([token]) if token < len(self.tokenizer) else ""
        if text and BROKEN not in text:
            return text
        if raw := self._bytes(token):
            return _OPEN.sub(_hexadecimal, raw.decode("utf-8", "surrogateescape"))
        return str(self.tokenizer.convert_ids_to_tokens(token) or f"#{token}").replace("▁", " ")

    def _bytes(self, token: int) -> bytes | None:
        """The bytes of a token of a byte-level vocabulary or of a byte that a vocabulary falls back on, else None."""
        name = self.tokenizer.convert_ids_to_tokens(token) if token < len(self.tokenizer) else None
        if not isinstance(name, str) or not name:
            return None
        if fallback := _FALLBACK.fullmatch(name):
            return bytes.fromhex(fallback[1])
        return bytes(_BYTE[c] for c in name) if all(c in _BYTE for c in name) else None


_OPEN = re.compile("[\udc80-\udcff]+")
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _hexadecimal(open_bytes: re.Match[str]) -> str:
    return open_bytes[0].encode("utf-8", "surrogateescape").hex(" ").upper().join(BYTES)


def _byte_letters() -> dict[str, int]:
    """The letter of each byte in byte-level vocabularies: itself if it can be seen, otherwise one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(b): b for b in seen} | {chr(256 + n): b for n, b in enumerate(hidden)}


_BYTE = _byte_letters()


def difference(teacher: Sequence[int], own: Sequence[int]) -> tuple[int, int, int]:
    """The differing range (a, b, c) of two contexts: ``teacher[a:b]`` replaces ``own[a:c]``."""
    shorter = min(len(teacher), len(own))
    start = next((i for i in range(shorter) if teacher[i] != own[i]), shorter)
    room = shorter - start
    end = next((i for i in range(room) if teacher[-1 - i] != own[-1 - i]), room)
    return start, len(teacher) - end, len(own) - end
