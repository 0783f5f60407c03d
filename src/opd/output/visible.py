"""Texts of data, models and servers, made safe to show. Nothing here imports torch."""

from __future__ import annotations

import re

from opd.config.secrets import redact_sentence

LONGEST = 1000
"""Characters of an error in the terminal; the middle of a longer one is left out."""

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline; escape sequences begin with one
    "\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff"  # direction marks and invisible separators
    "\ud800-\udfff\U000e0000-\U000e007f]"  # halves of characters, and invisible tags
)


def visible(text: str) -> str:
    """The text with characters that have no shape, or that turn the order of others, written as ``\\u202e``."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def sentence(text: str) -> str:
    """An error or event as one line of bounded length, without keys."""
    line = visible(" ".join(redact_sentence(text).split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
