"""Five functions that a student calls, each under several names, so that it has to read the list of tools."""

from __future__ import annotations

from collections.abc import Callable
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


NAMES: dict[str, dict[Callable[..., Any], tuple[str, ...]]] = {
    "traces": {
        add: ("add",),
        multiply: ("multiply",),
        celsius: ("celsius",),
        count_letter: ("count_letter",),
        weekday: ("weekday",),
    },
    "reminded": {
        add: ("sum", "plus", "total", "addition", "combine", "accumulate", "sum_of", "two_numbers"),
        multiply: ("times", "product", "multiplication", "scale", "mul", "repeat", "product_of", "area"),
        celsius: ("convert", "to_c", "temperature", "fahrenheit", "degrees", "weather", "thermo", "unit"),
        count_letter: ("letters", "count", "occurrences", "find_letter", "spell", "character", "text", "word"),
        weekday: ("day", "date", "calendar", "day_of_week", "which_day", "get_day", "week", "name_of_day"),
    },
    "tasks": {
        add: ("adder", "tally", "aggregate", "increase"),
        multiply: ("multiplier", "prod", "factor", "grow"),
        celsius: ("centigrade", "temp", "thermometer", "converter"),
        count_letter: ("frequency", "char_count", "letter_count", "contains"),
        weekday: ("date_to_day", "day_name", "schedule", "day_finder"),
    },
    "held_out": {
        add: ("summation", "add_up"),
        multiply: ("mult", "expand"),
        celsius: ("heat", "f_to_c"),
        count_letter: ("search", "letters_in"),
        weekday: ("agenda", "find_day"),
    },
}
"""The names that a function may have in each file of prompts, and in the traces with a reminder; no name is in two."""


def renamed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The same function under another name."""
    assert isinstance(function, FunctionType)
    copy = FunctionType(function.__code__, function.__globals__, name)
    copy.__doc__, copy.__annotations__ = function.__doc__, function.__annotations__
    return copy


FUNCTIONS = [renamed(f, name) for names in NAMES.values() for f, given in names.items() for name in given]
