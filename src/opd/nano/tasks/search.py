"""Two-hop questions about facts in the prompt, answered by quoting both facts. Every prompt has new invented names.

system     documents: wib likes vex. blip lives in frob. vex lives in quix. zed likes blip. narp lives in tosk.
user       who zed likes lives where?
assistant  zed likes blip. blip lives in frob. answer frob
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from opd.nano.tasks.drawn import draw_splits, last_turn, pick
from opd.nano.tokenizer import TOOL_NAMES
from opd.types import Message, Observation, Prompt

LINKS = {"likes": "who", "owns": "what"}
"""Relations of the first hop, and the question word for their object."""

RELATIONS = (*LINKS, "lives in")
NUM_CHAINS = 4
NUM_DISTRACTORS = (3, 4, 5, 6)
"""Number of facts besides the two that answer the question."""

_SEED = 20_240_604


class Fact(NamedTuple):
    """``subject relation object``."""

    subject: str
    relation: str
    object: str

    def __str__(self) -> str:
        return f"{self.subject} {self.relation} {self.object}."


class Problem(NamedTuple):
    """Facts in the order of the documents, and the two linked facts that answer the question."""

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
    """A problem with facts of several chains of the same two relations; no name is the subject of two facts."""
    names = iter(rng.sample(TOOL_NAMES, 3 * NUM_CHAINS))
    link = rng.choice(list(LINKS))
    asked = rng.choice([relation for relation in RELATIONS if relation != link])
    (first, second), *rivals = [_chain(names, link, asked) for _ in range(NUM_CHAINS)]
    distractors = rng.sample([fact for chain in rivals for fact in chain], rng.choice(NUM_DISTRACTORS))
    facts = [first, second, *distractors]
    return Problem(tuple(rng.sample(facts, len(facts))), first, second)


def _chain(names: Iterator[str], link: str, asked: str) -> tuple[Fact, Fact]:
    """Two linked facts: the object of the first is the subject of the second."""
    start, middle, end = next(names), next(names), next(names)
    return Fact(start, link, middle), Fact(middle, asked, end)


class SearchTask:
    """See the module's docstring. One turn; no events."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The prompts of ``train``, ``val`` or ``test``."""
        return pick("search", _splits(), split)

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        """Check the name after the last "answer"; any text after it makes the answer wrong."""
        _, found, name = last_turn(transcript).rpartition("answer")
        return Observation(correct=bool(found) and name.split() == [prompt.data["result"]])


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
