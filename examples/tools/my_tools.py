"""Five functions that a student calls, each under several names, so that it has to read the list of tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from types import FunctionType
from typing import Any


def add(a: float, b: float) -> float:
    """Add two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


def multiply(a: float, b: float) -> float:
    """Multiply two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a * b


def celsius(fahrenheit: float) -> float:
    """Convert degrees Fahrenheit to Celsius.

    Args:
        fahrenheit: The temperature in degrees Fahrenheit.
    """
    return round((fahrenheit - 32) / 1.8, 1)


def count_letter(word: str, letter: str) -> int:
    """Count a letter in a word.

    Args:
        word: The word.
        letter: The letter.
    """
    return word.lower().count(letter.lower())


def weekday(year: int, month: int, day: int) -> str:
    """Name the weekday of a date.

    Args:
        year: The year.
        month: The month, from 1 to 12.
        day: The day of the month.
    """
    return date(year, month, day).strftime("%A")


STEMS: dict[Callable[..., Any], tuple[tuple[str, ...], tuple[str, ...]]] = {
    add: (("sum", "plus", "total", "addition", "accumulate", "combined"), ("aggregate", "tally")),
    multiply: (("times", "product", "scale", "mul", "repeated", "grow"), ("factor", "expand")),
    celsius: (("centigrade", "convert", "thermo", "to_c", "degrees", "temp"), ("heat", "f_to_c")),
    count_letter: (("letters", "occurrences", "count", "spell", "chars", "text"), ("frequency", "search")),
    weekday: (("day_name", "date", "which_day", "calendar", "week", "day"), ("agenda", "day_finder")),
}
"""Words that the names of a function are made of: those of training, and those of held-out prompts."""

PREFIXES = ("get", "calc", "find", "do", "run", "my", "fast", "api"), ("new", "use", "tool", "ask")
"""What stands before them, likewise."""


def _names(function: Callable[..., Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    training, held_out = (
        [f"{prefix}_{stem}" for stem in stems for prefix in prefixes]
        for stems, prefixes in zip(STEMS[function], PREFIXES, strict=True)
    )
    yield "usual", (function.__name__,)
    yield "reminded", tuple(training[::2])
    yield "tasks", tuple(training[1::2])
    yield "held_out", tuple(held_out)


NAMES = {function: dict(_names(function)) for function in STEMS}
"""By function and kind of row, the names that it may have; no name is in two kinds."""


def renamed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The same function under another name."""
    assert isinstance(function, FunctionType)
    copy = FunctionType(function.__code__, function.__globals__, name)
    copy.__doc__, copy.__annotations__ = function.__doc__, function.__annotations__
    return copy


FUNCTIONS = [renamed(f, name) for f, kinds in NAMES.items() for names in kinds.values() for name in names]
