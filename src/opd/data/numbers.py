"""Numbers as people write them: 1,000, 2 000, $18, 3.50, 50%, 1/2, 3e-5."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

_DIGITS = r"(?:\d{1,3}(?:(?:,\s?| )\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+"
_POWER = r"[eE][+-]?\d+|\s*(?:\\times|\\cdot|\*|x)\s*10\s*(?:\^|\*\*)\s*\{?[+-]?\d+\}?"
_NAME = r"(?:[^\W\d_]{2,}\.?|[mgshlLNJWVACFK\u3040-\u9fff])(?:\^\{?-?\d\}?)?"
_UNIT = rf"{_NAME}(?:\s*(?:/|\\cdot)\s*{_NAME})*"
"""A unit: ``dollars``, ``cm^2``, ``km/h``; other single letters are variables."""
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*[$€£¥₹]?\s*(?P<minus>-?)\s*(?:"
    rf"(?P<whole>\d+)?\s*\\frac\s*\{{\s*(?P<above>-?\d+)\s*\}}\s*\{{\s*(?P<below>\d+)\s*\}}"
    rf"|(?:(?P<full>\d+)\s+)?(?P<over>\d+)\s*/\s*(?P<under>\d+)"
    rf"|(?P<digits>{_DIGITS})(?P<power>{_POWER})?"
    rf")\s*(?P<percent>%?)\s*[$€£¥₹]?(?:(?:[ -]{_UNIT})+|(?:cm|mm|km|kg|mg|ml|mph|st|nd|rd|th|[\u3040-\u9fff]+))?"
)
"""With a currency before or after it, and a unit in words."""

MOST_CHARACTERS = 1_000
"""A longer text is no number that an answer has; Python reads no integer of more than 4,300 digits."""

LARGEST_EXPONENT = 300
"""Above it a power of ten is no number that an answer has, and slow to compare."""


class Number(NamedTuple):
    """A number as it is written."""

    value: Fraction
    percent: bool

    def equals(self, other: Number) -> bool:
        """Whether the values are equal; 50 % equals 50 and 0.5."""
        if self.percent == other.percent:
            return self.value == other.value
        percent, plain = (self, other) if self.percent else (other, self)
        return plain.value in (percent.value, percent.value / 100)


def number(text: str) -> Number | None:
    """A cleaned text as a number, with or without currency, percent sign and unit; None if it is something else."""
    found = _NUMBER.fullmatch(text) if len(text) <= MOST_CHARACTERS else None
    if not found:
        return None
    part = found.groupdict()
    if part["digits"]:
        exponent = int(re.findall(r"[+-]?\d+", part["power"])[-1]) if part["power"] else 0
        if abs(exponent) > LARGEST_EXPONENT:
            return None
        value = Fraction(re.sub(r"[,\s]", "", part["digits"]).rstrip(".")) * Fraction(10) ** exponent
    else:
        above, below = int(part["above"] or part["over"]), int(part["below"] or part["under"])
        if not below:
            return None
        value = int(part["whole"] or part["full"] or 0) + Fraction(above, below)
    negative = (part["sign"] == "-") != (part["minus"] == "-")
    return Number(-value if negative else value, bool(part["percent"]))


def whole(digits: str) -> int | None:
    """The integer of a text of digits; None for more of them than an answer has."""
    return int(digits) if len(digits) <= MOST_CHARACTERS else None
