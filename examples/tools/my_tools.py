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
        add: ("add", "sum"),
        multiply: ("multiply", "times"),
        celsius: ("celsius", "convert_temperature"),
        count_letter: ("count_letter", "count"),
        weekday: ("weekday", "day_of_week"),
    },
    "reminded": {
        add: ("add_numbers", "sum_up", "a_plus_b"),
        multiply: ("multiply_numbers", "times_table", "a_times_b"),
        celsius: ("fahrenheit_converter", "celsius_of", "to_c"),
        count_letter: ("letters", "how_many_letters", "find_letter"),
        weekday: ("day", "get_weekday", "day_of_date"),
    },
    "tasks": {
        add: ("plus", "total", "math_add", "adder"),
        multiply: ("product", "mul", "math_multiply", "multiplier"),
        celsius: ("to_celsius", "f2c", "temperature_converter", "degrees"),
        count_letter: ("letters_in", "char_count", "letter_counter", "occurrences"),
        weekday: ("which_day", "date_to_day", "calendar", "day_name"),
    },
    "held_out": {
        add: ("add_up", "addition"),
        multiply: ("mult", "multiplication"),
        celsius: ("fahrenheit_to_celsius", "temp"),
        count_letter: ("count_chars", "letter_frequency"),
        weekday: ("find_weekday", "day_finder"),
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
