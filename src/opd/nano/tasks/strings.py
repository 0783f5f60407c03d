"""Programs of two operations on a list of letters, solved one operation after the other.

user       sort then drop first: k b d a f
assistant  a b d f k; answer b d f k
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from opd.nano.tasks.drawn import draw_splits, last_turn, pick
from opd.types import Message, Observation, Prompt

Letters = tuple[str, ...]

OPERATIONS: dict[str, Callable[[Letters], Letters]] = {
    "reverse": lambda letters: letters[::-1],
    "sort": lambda letters: tuple(sorted(letters)),
    "swap": lambda letters: (letters[-1], *letters[1:-1], letters[0]),
    "drop first": lambda letters: letters[1:],
    "drop last": lambda letters: letters[:-1],
}
"""``swap`` exchanges the first letter and the last."""

LENGTHS = (4, 5, 6, 7)

_SEED = 20_240_603
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


class Program(NamedTuple):
    """Operation ``first``, then ``second``, on distinct letters."""

    first: str
    second: str
    letters: Letters

    @property
    def inner(self) -> Letters:
        return OPERATIONS[self.first](self.letters)

    @property
    def result(self) -> Letters:
        return OPERATIONS[self.second](self.inner)

    @property
    def question(self) -> str:
        """The user's message."""
        return f"{self.first} then {self.second}: {' '.join(self.letters)}"

    @property
    def working(self) -> str:
        """The full solution: the list after the first operation, then the answer."""
        return f"{' '.join(self.inner)}; answer {' '.join(self.result)}"


def draw(rng: random.Random) -> Program:
    """A program in which each operation changes the list, and the second does not undo the first."""
    while True:
        letters = tuple(rng.sample(_ALPHABET, rng.choice(LENGTHS)))
        program = Program(rng.choice(list(OPERATIONS)), rng.choice(list(OPERATIONS)), letters)
        if len({letters, program.inner, program.result}) == 3:
            return program


class StringsTask:
    """See the module's docstring. One turn; no events."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The prompts of ``train``, ``val`` or ``test``."""
        return pick("strings", _splits(), split)

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        """Check the letters after the last "answer"; any text after them makes the answer wrong."""
        _, found, letters = last_turn(transcript).rpartition("answer")
        return Observation(correct=bool(found) and tuple(letters.split()) == prompt.data["result"])


@cache
def _splits() -> dict[str, tuple[Prompt, ...]]:
    return draw_splits(_SEED, draw, lambda program: program, _make_prompt)


def _make_prompt(program: Program, id: str) -> Prompt:
    return Prompt(
        id=f"strings/{id}",
        messages=({"role": "user", "content": program.question},),
        answer=program.working,
        domain="strings",
        data={"program": tuple(program), "result": program.result},
    )
