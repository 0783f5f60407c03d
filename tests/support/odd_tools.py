"""Functions that cannot all be tools."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int


def paint(colour: Colour, others: list[Colour] | None = None) -> str:
    """Paint.

    Args:
        colour: of the wall
        others: of the doors
    """
    return f"{colour.name} and {', '.join(other.name for other in others or []) or 'nothing'}"


async def wait(seconds: float) -> str:
    """Wait.

    Args:
        seconds: to wait
    """
    if seconds < 0:
        os._exit(3)
    await asyncio.sleep(seconds)
    return "done"


def by_place(a: int, /) -> int:
    """Double.

    Args:
        a: a number
    """
    return 2 * a


def of_many(*numbers: int) -> int:
    """Add.

    Args:
        numbers: to add
    """
    return sum(numbers)


def of_any(**more: int) -> int:
    """Add.

    Args:
        more: numbers
    """
    return sum(more.values())


def one_by_one(last: int) -> Iterator[int]:
    """Count.

    Args:
        last: number
    """
    yield from range(last)


def of_a_class(point: Point) -> int:
    """Measure.

    Args:
        point: to measure
    """
    return point.x


class Callable:
    def __call__(self, a: int) -> int:
        """Double.

        Args:
            a: a number
        """
        return 2 * a


OBJECT = Callable()
FUNCTIONS = [paint, wait]
