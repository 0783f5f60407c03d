"""Values at positions of a batch, of which rows can be selected: the base of signals and states."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PerPosition:
    """Values at T positions; every field whose suffix begins with T has a row for each."""

    def take(self, rows: Tensor) -> Self:
        """Select rows, by indices or by a mask.

        Raises:
            TypeError: T stands elsewhere in a field's suffix.
        """
        suffixes = {f.name: f.name.rpartition("_")[2] for f in fields(self)}
        for name, suffix in suffixes.items():
            if suffix.isupper() and "T" in suffix[1:]:
                raise TypeError(
                    f"{type(self).__name__}.{name}: rows have to come first. Fix: let the suffix begin with T"
                )
        values = {name: getattr(self, name) for name, suffix in suffixes.items() if suffix[:1] == "T"}
        return replace(self, **{name: value[rows] for name, value in values.items() if value is not None})

    def arrived(self) -> Self:
        """The same values, once those that a server still has to send are here."""
        later = {f.name: v.wait() for f in fields(self) if hasattr(v := getattr(self, f.name), "wait")}
        return replace(self, **later) if later else self
