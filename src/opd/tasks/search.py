"""Questions of two hops on facts in the prompt, answered by quoting both; names are invented, and new in every prompt.

system     documents: blip owns vex. zed owns quix. vex lives in wib. zed likes blip. blip lives in frob.
user       who zed likes lives where?
assistant  zed likes blip. blip lives in frob. answer frob
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from opd.nano.tokenizer import TOOL_NAMES
from opd.tasks.drawn import draw_splits, last_turn, pick
from opd.types import Message, Observation, Prompt

LINKS = {"likes": "who", "owns": "what"}
"""Relations of the first hop, and the word that asks for what they lead to."""

RELATIONS = (*LINKS, "lives in")
NUM_DISTRACTORS = (3, 4, 5, 6)
"""Facts besides the two that the question is about."""

_SEED = 20_240_604


class Fact(NamedTuple):
    """``subject relation object``."""

    subject: str
    relation: str
    object: str

    def __str__(self) -> str:
        return f"{self.subject} {self.relation} {self.object}."


class Problem(NamedTuple):
    """Facts in the order of the documents, and the two that answer the question, of which one leads to the other."""

    facts: tuple[Fact, ...]
    first: Fact
    second: Fact

    @property
    def documents(self) -> str:
        """The system's message."""
        return f"documents: {' '.join(map(str, self.facts))}"

    @property
    def question(self) -> str:
        """The user's message."""
        asked = "where" if self.second.relation == "lives in" else "what"
        link = LINKS[self.first.relation]
        return f"{link} {self.first.subject} {self.first.relation} {self.second.relation.split()[0]} {asked}?"

    @property
    def working(self) -> str:
        """The full solution: both facts, then the answer."""
        return f"{self.first} {self.second} answer {self.second.object}"


def draw(rng: random.Random) -> Problem:
    """A problem among facts of two chains with the same relations, which lead to different answers."""
    names = iter(rng.sample(TOOL_NAMES, 10))
    link = rng.choice(list(LINKS))
    asked = rng.choice([relation for relation in RELATIONS if relation != link])
    first, second, *others = _chain(rng, names, link, asked)
    others += _chain(rng, names, link, asked)
    chosen = [first, second, *rng.sample(others, rng.choice(NUM_DISTRACTORS))]
    return Problem(tuple(rng.sample(chosen, len(chosen))), first, second)


def _chain(rng: random.Random, names: Iterator[str], link: str, asked: str) -> list[Fact]:
    """Two facts of which one leads to the other, and one more about the subject of each."""
    start, middle = next(names), next(names)
    facts = [Fact(start, link, middle), Fact(middle, asked, next(names))]
    for fact in tuple(facts):
        other = rng.choice([relation for relation in RELATIONS if relation != fact.relation])
        facts.append(Fact(fact.subject, other, next(names)))
    return facts


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
    return draw_splits(_SEED, draw, lambda problem: (problem.first, problem.second), _make_prompt)


def _make_prompt(problem: Problem, id: str) -> Prompt:
    return Prompt(
        id=f"search/{id}",
        messages=(
            {"role": "system", "content": problem.documents},
            {"role": "user", "content": problem.question},
        ),
        answer=problem.working,
        domain="search",
        data={"first": tuple(problem.first), "second": tuple(problem.second), "result": problem.second.object},
    )
