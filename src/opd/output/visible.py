"""Texts of data, models and servers, made safe to show. Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Callable

from opd.config.secrets import redact_sentence

LONGEST = 1000
"""Characters of an error in the terminal; the middle of a longer one is left out."""

SHAPELESS = (
    *((0x00, 0x08), (0x0B, 0x1F), (0x7F, 0x9F)),  # control characters but tab and newline
    *((0x061C, 0x061C), (0x200E, 0x200F), (0x202A, 0x202E), (0x2066, 0x2069)),  # direction marks
    *((0x200B, 0x200B), (0x2028, 0x2029), (0x2060, 0x2065), (0xFEFF, 0xFEFF)),  # separators without width
    *((0xAD, 0xAD), (0x034F, 0x034F), (0x180B, 0x180F), (0x206A, 0x206F), (0xFFF0, 0xFFFB)),  # formats of old
    *((0x115F, 0x1160), (0x17B4, 0x17B5), (0x3164, 0x3164), (0xFFA0, 0xFFA0)),  # letters that fill
    *((0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A)),  # formats of shorthand and music
    *((0xD800, 0xDFFF), (0xE0000, 0xE00FF), (0xE01F0, 0xE0FFF)),  # halves of characters, tags, and what is like them
)
"""Ranges of characters that no eye sees, or that turn the order of others."""

_ONCE = ("\u200c\u200d", "\ufe00-\ufe0f\U000e0100-\U000e01ef")
"""Joiners, and selectors of a form: one changes the shape of its neighbours, and a row of them hides a text."""


def shapeless_pattern(write: Callable[[int], str]) -> str:
    """A regular expression of what has no shape.

    Args:
        write: writes a code point in the expression's language.
    """
    ranges = "".join(f"{write(first)}-{write(last)}" for first, last in SHAPELESS)
    once = ["".join("-" if c == "-" else write(ord(c)) for c in characters) for characters in _ONCE]
    return "|".join([f"[{ranges}]", *(f"(?<=[{each}])[{each}]" for each in once)])


_HIDDEN = re.compile(shapeless_pattern("\\U{:08x}".format))


def visible(text: str) -> str:
    """The text with characters that have no shape, or that turn the order of others, written as ``\\u202e``."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def sentence(text: str) -> str:
    """An error or event as one line of bounded length, without keys."""
    line = visible(" ".join(redact_sentence(text).split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
