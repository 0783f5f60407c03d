"""Questions of two hops on facts in the prompt, answered by quoting both; names are invented, and new in every prompt.

system     documents: blip likes quix. zed lives in frob. blip owns vex. zed owns quix. blip lives in wib.
user       who owns quix lives where?
assistant  zed owns quix. zed lives in frob. answer frob
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from opd.nano.tokenizer import TOOL_NAMES
from opd.tasks.drawn import draw_splits, last_turn, pick
from opd.types import Message, Observation, Prompt

RELATIONS = ("owns", "likes", "lives in")
NUM_PEOPLE = 3
NUM_DISTRACTORS = (3, 4, 5, 6)
"""Facts besides the two that the question is about."""

TRAP = 0.5
"""Chance that the thing asked about stands in another relation to somebody else."""

_SEED = 20_240_604


class Fact(NamedTuple):
    """``subject relation object``."""

    subject: str
    relation: str
    object: str

    def __str__(self) -> str:
        return f"{self.subject} {self.relation} {self.object}."


class Problem(NamedTuple):
    """Facts in the order of the documents, and the two that answer the question: of one subject, one hop each."""

    facts: tuple[Fact, ...]
    known: Fact
    asked: Fact

    @property
    def documents(self) -> str:
        """The system's message."""
        return f"documents: {' '.join(map(str, self.facts))}"

    @property
    def question(self) -> str:
        """The user's message."""
        asked = "lives where" if self.asked.relation == "lives in" else f"{self.asked.relation} what"
        return f"who {self.known.relation} {self.known.object} {asked}?"

    @property
    def working(self) -> str:
        """The full solution: both facts, then the answer."""
        return f"{self.known} {self.asked} answer {self.asked.object}"


def draw(rng: random.Random) -> Problem:
    """A problem in which one person alone fits the question."""
    names = iter(rng.sample(TOOL_NAMES, NUM_PEOPLE * (1 + len(RELATIONS))))
    people = [next(names) for _ in range(NUM_PEOPLE)]
    facts = [Fact(person, relation, next(names)) for person in people for relation in RELATIONS]
    known, asked = rng.sample(facts[: len(RELATIONS)], 2)
    others = [fact for fact in facts if fact not in (known, asked)]
    if rng.random() < TRAP:
        others = _trapped(rng, others, known)
    chosen = [known, asked, *rng.sample(others, rng.choice(NUM_DISTRACTORS))]
    return Problem(tuple(rng.sample(chosen, len(chosen))), known, asked)


def _trapped(rng: random.Random, others: Sequence[Fact], known: Fact) -> list[Fact]:
    """The other facts, one of another person and relation about the thing that is asked about."""
    trap = rng.choice([f for f in others if f.subject != known.subject and f.relation != known.relation])
    return [fact._replace(object=known.object) if fact == trap else fact for fact in others]


class SearchTask:
    """See the module's docstring. One turn; no events."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The prompts of ``train``, ``val`` or ``test``."""
        return pick("search", _splits(), split)

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        """Check the name after the last "answer", which nothing may follow."""
        _, found, name = last_turn(transcript).rpartition("answer")
        return Observation(reward=float(bool(found) and name.split() == [prompt.data["result"]]))


@cache
def _splits() -> dict[str, tuple[Prompt, ...]]:
    return draw_splits(_SEED, draw, lambda problem: (problem.known, problem.asked), _make_prompt)


def _make_prompt(problem: Problem, id: str) -> Prompt:
    return Prompt(
        id=f"search/{id}",
        messages=(
            {"role": "system", "content": problem.documents},
            {"role": "user", "content": problem.question},
        ),
        answer=problem.working,
        domain="search",
        data={"known": tuple(problem.known), "asked": tuple(problem.asked), "result": problem.asked.object},
    )
