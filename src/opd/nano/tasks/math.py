"""Addition of two numbers of two to four digits, worked from the last digit to the first.

user       347 + 58
assistant  7 + 8 + 0 = 5 carry 1; 4 + 5 + 1 = 0 carry 1; 3 + 0 + 1 = 4 carry 0; answer 405
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache

from opd.data.numbers import whole
from opd.nano.tasks.drawn import draw_splits, last_turn, pick
from opd.types import Message, Observation, Prompt

_SEED = 20_240_602
_ANSWER = re.compile(r"answer((?:\s*\d)+)")


def draw(rng: random.Random) -> tuple[int, int]:
    """Two numbers, each with two to four digits, equally likely."""
    a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for digits in (rng.randint(2, 4), rng.randint(2, 4)))
    return a, b


def question(a: int, b: int) -> str:
    """The user's message."""
    return f"{a} + {b}"


def working(a: int, b: int) -> str:
    """The full solution: one step with its carry per column, then the answer."""
    steps, carry, x, y = [], 0, a, b
    while x or y:
        column = x % 10 + y % 10 + carry
        steps.append(f"{x % 10} + {y % 10} + {carry} = {column % 10} carry {column // 10}")
        x, y, carry = x // 10, y // 10, column // 10
    return "; ".join([*steps, f"answer {a + b}"])


class MathTask:
    """See the module's docstring. One turn; no events."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The prompts of ``train``, ``val`` or ``test``."""
        return pick("math", _splits(), split)

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        """Check the number after the last "answer"."""
        answers = _ANSWER.findall(last_turn(transcript))
        right = bool(answers) and whole("".join(answers[-1].split())) == prompt.data["result"]
        return Observation(correct=right)


@cache
def _splits() -> dict[str, tuple[Prompt, ...]]:
    """All splits; no two prompts add the same numbers, in either order."""
    return draw_splits(_SEED, draw, frozenset, _make_prompt)


def _make_prompt(pair: tuple[int, int], id: str) -> Prompt:
    a, b = pair
    return Prompt(
        id=f"math/{id}",
        messages=({"role": "user", "content": question(a, b)},),
        answer=working(a, b),
        domain="math",
        data={"a": a, "b": b, "result": a + b},
    )
