"""Traces of the text tasks, and mixtures of traces of several tasks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from opd.nano.tasks import search, strings
from opd.nano.traces import Source, Trace, Turn
from opd.types import Prompt, Task


def strings_trace(rng: random.Random) -> Trace:
    """A list program with its working."""
    while (program := strings.draw(rng)) in _held_out_programs():
        pass
    return [Turn("user", program.question, trained=False), Turn("assistant", program.working)]


def search_trace(rng: random.Random) -> Trace:
    """Facts, a two-hop question, and an answer that quotes both facts."""
    while (problem := search.draw(rng))[1:] in _held_out_facts():
        pass
    return [
        Turn("system", problem.documents, trained=False),
        Turn("user", problem.question, trained=False),
        Turn("assistant", problem.working),
    ]


def hasty_strings_trace(rng: random.Random) -> Trace:
    """A list program whose answer omits the second operation."""
    *question, answer = strings_trace(rng)
    inner, _, _ = answer.text.partition(";")
    return [*question, replace(answer, text=f"{inner}; answer {inner}")]


def hasty_search_trace(rng: random.Random) -> Trace:
    """A two-hop question, answered after the first hop."""
    *question, answer = search_trace(rng)
    first, _, _ = answer.text.partition(".")
    return [*question, replace(answer, text=f"{first}. answer {first.split()[-1]}")]


def mixed_trace(rng: random.Random, *, sources: Sequence[Source]) -> Trace:
    """A trace of one of the sources, with equal probability."""
    return rng.choice(sources)(rng)


def _held_out(task: Task) -> list[Prompt]:
    return [prompt for split in ("val", "test") for prompt in task.prompts(split)]


@cache
def _held_out_programs() -> frozenset[tuple[object, ...]]:
    return frozenset(prompt.data["program"] for prompt in _held_out(strings.StringsTask()))


@cache
def _held_out_facts() -> frozenset[tuple[object, ...]]:
    return frozenset((prompt.data["first"], prompt.data["second"]) for prompt in _held_out(search.SearchTask()))
