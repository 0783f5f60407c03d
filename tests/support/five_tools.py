"""Functions that tests let a student call."""

import os
import sys
import time
from typing import Any


def add(a: int, b: int) -> int:
    """Add two whole numbers.

    Args:
        a: first number
        b: second number
    """
    print("printed by a tool", flush=True)
    return a + b


def weather(city: str, unit: str = "celsius", days: list[int] | None = None) -> dict[str, Any]:
    """Look the weather up.

    Args:
        city: name of the city
        unit: of the temperature (choices: ["celsius", "fahrenheit"])
        days: ahead of today
    """
    return {"city": city, "unit": unit, "temperature": 21, "café": "ü\ud800"}


def hang() -> None:
    """Hang without ever giving another thread a turn."""
    while True:
        time.sleep(0.001) if os.environ.get("OPD_NEVER") else None


def die() -> None:
    """End the process."""
    os._exit(3)


def fail(text: str) -> str:
    """Raise an error.

    Args:
        text: of the error
    """
    sys.exit("left") if text == "leave" else None
    raise RuntimeError(text)


FUNCTIONS = [add, weather, hang, die, fail]

UNDOCUMENTED = [len, lambda x: x]
NOTHING: list[Any] = []
