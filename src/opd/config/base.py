"""The base class of every part of the run file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

LARGEST = 2**53
"""Integers from here on are not exact in a float or in the report's page."""


class Strict(BaseModel):
    """A frozen mapping of known keys; the string under a field documents it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for a number; pydantic would read 1 and 0."""
        if isinstance(value, bool) and info.field_name:
            annotation = cls.model_fields[info.field_name].annotation
            kinds = {annotation, *get_args(annotation)}
            if kinds & {int, float} and bool not in kinds:
                raise ValueError(f"{str(value).lower()} is not a number. Fix: give a number, or leave it out")
        return value

    @field_validator("*")
    @classmethod
    def _fits_files(cls, value: Any) -> Any:
        """Refuse what files and reports cannot hold, also inside values of any type: pydantic checks typed ones."""
        _check_values(value)
        return value

    def needs(self) -> Mapping[str, tuple[str, ...]]:
        """What the settings require of the rest of the run: a key of this mapping ("" for all of it) to fact names.

        The facts are those of ``opd.axes.needs.FACTS``; the run file is checked against them as a whole.
        """
        return {}

    def all_needs(self, key: str = "") -> Iterator[tuple[str, str]]:
        """(dotted key, fact) of this mapping and of every mapping inside it."""
        for inner, facts in self.needs().items():
            for fact in facts:
                yield f"{key}.{inner}".strip("."), fact
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Strict):
                yield from value.all_needs(f"{key}.{name}".strip("."))


def exactly_one(config: Strict, *keys: str) -> None:
    """Refuse a mapping that gives none of the keys, or several.

    Raises:
        ValueError: the sentence names those that are given.
    """
    given = [key for key in keys if getattr(config, key) is not None]
    if len(given) != 1:
        others = sorted(config.model_fields_set - {*keys})
        got = " and ".join(given) or (f"only {', '.join(others)}" if others else "none")
        raise ValueError(
            f"exactly one of {', '.join(keys[:-1])} and {keys[-1]} is needed (got {got}). Fix: "
            f"{'keep' if given else 'give'} one of them"
        )


def _check_values(value: Any) -> None:
    match value:
        case str() if found := re.search("[\x00\ud800-\udfff]", value):
            raise ValueError(f"a text has the character U+{ord(found[0]):04X}. Fix: leave it out")
        case int() if abs(value) >= LARGEST:
            raise ValueError(f"an integer of {value.bit_length()} bits is too large. Fix: lower it")
        case float() if not math.isfinite(value):
            raise ValueError(f"{value} is no value. Fix: give a finite number, or leave it out")
        case Mapping():
            for key, inner in value.items():
                _check_values(key)
                _check_values(inner)
        case list() | tuple():
            for inner in value:
                _check_values(inner)
