"""JSON as opd reads it everywhere: lines end with ``\n`` only, and nothing that JSON does not have. No torch here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MAX_DIGITS = 40
"""Length of the longest integer."""

_GIANT = re.compile(rf"[eE]\+?\d{{3}}|\d{{{MAX_DIGITS + 1}}}")
"""A number that may be too large; reading each number in Python takes ten times as long."""

_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def parse(text: str | bytes, *, halves: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        halves: let halves of characters stand, for a caller that replaces them.

    Raises:
        ValueError: it is no JSON in UTF-8, has NaN, an infinity, a key twice, half a character or a giant integer, or
            is nested too deeply. The message is one sentence without a full stop.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        numbers: dict[str, Any] = {"parse_int": _integer, "parse_float": _number} if _GIANT.search(text) else {}
        value = json.loads(text, parse_constant=_constant, object_pairs_hook=_object, **numbers)
    except RecursionError:
        raise ValueError("too many values inside each other") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos + 1}") from None
    if not halves and _HALF.search(text):
        _refuse_halves(value)
    return value


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, without empty ones; a byte order mark is left out.

    U+2028, U+2029 and U+0085 do not end a line.
    """
    with path.open("rb") as file:  # a binary file's lines end with \n alone
        for number, line in enumerate(file, 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield number, line


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer has {len(digits):,} digits")
    return int(digits)


def _number(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:MAX_DIGITS]} is too large for a number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key '{next(key for key in keys if keys.count(key) > 1)}' stands twice")
    return found


def _refuse_halves(value: Any) -> None:
    """Refuse halves of characters, which JSON can write and no tokenizer or file can take."""
    if isinstance(value, str):
        if re.search("[\ud800-\udfff]", value):
            raise ValueError("a text has half of a character (a lone surrogate such as \\ud800)")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_halves(key)
            _refuse_halves(inner)
    elif isinstance(value, list):
        for inner in value:
            _refuse_halves(inner)
