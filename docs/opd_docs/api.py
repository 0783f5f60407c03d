"""Which names the Python reference shows: those that the packages themselves call public."""

from __future__ import annotations

import ast
import inspect

import opd
import opd.losses
import opd.types as contracts


def names() -> str:
    """What ``import opd`` offers, functions first; what has its home in ``opd.types`` is shown there."""
    ours = [name for name in opd.__all__ if getattr(opd, name).__module__ != contracts.__name__ and name != "Message"]
    return _shown("opd", sorted(ours, key=lambda name: (name[0].isupper(), name)))


def losses() -> str:
    """What ``opd.losses`` offers."""
    return _shown("opd.losses", opd.losses.__all__)


def types() -> str:
    """The contracts, in the order in which they stand on their page."""
    body = ast.parse(inspect.getsource(contracts)).body
    return _shown("opd.types", [node.name for node in body if isinstance(node, ast.ClassDef)])


def _shown(package: str, listed: list[str]) -> str:
    return "\n\n".join(f"::: {package}.{name}" for name in listed)
