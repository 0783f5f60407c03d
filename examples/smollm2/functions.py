"""Thirty functions in six domains, from functions.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

WRITTEN = yaml.safe_load((Path(__file__).parent / "functions.yaml").read_text())


@dataclass(frozen=True)
class Parameter:
    """An argument of a function.

    Attributes:
        names: it may have; the first is the usual one.
        type: of JSON schema.
        values: to draw from.
    """

    names: Sequence[str]
    type: str
    values: Sequence[Any]


@dataclass(frozen=True)
class Function:
    """A function that answers one kind of question.

    Attributes:
        usual: its name in the traces without a reminder.
        says: its description.
        asks: questions, with the usual names of the arguments as fields.
        stems: words that a drawn name is made of.
    """

    usual: str
    domain: str
    says: str
    asks: Sequence[str]
    stems: Sequence[str]
    parameters: Sequence[Parameter]

    @property
    def held_out(self) -> bool:
        """Whether training never asks for it."""
        return self.domain in WRITTEN["held_out"]["domains"] or self.usual in WRITTEN["held_out"]["tools"]

    def drawn_name(self, rng: Random) -> str:
        """One of some 400 names."""
        stem, prefix = rng.choice(self.stems), rng.choice(WRITTEN["prefixes"])
        camel = prefix + stem.title().replace("_", "")
        return rng.choice((f"{prefix}_{stem}", f"{stem}_{prefix}", f"{stem}{rng.randint(2, 9)}", camel))


def _functions() -> list[Function]:
    known = {key: _parameter(**given) for key, given in WRITTEN["parameters"].items()}
    return [
        Function(usual, domain, one["says"], one["asks"], one["stems"], [known[key] for key in one["takes"]])
        for domain, listed in WRITTEN["functions"].items()
        for usual, one in listed.items()
    ]


def _parameter(
    names: Sequence[str], type: str, among: Sequence[str] = (), between: tuple[int, int] = (0, 0)
) -> Parameter:
    return Parameter(names, type, among or range(between[0], between[1] + 1))


FUNCTIONS = _functions()
