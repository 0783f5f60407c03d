"""Names in the Python reference: the public names of each package."""

from __future__ import annotations

import ast
import inspect

import opd
import opd.losses
import opd.types as contracts


def names() -> str:
    """The names of ``opd``, functions first; names from ``opd.types`` are listed there."""
    ours = [name for name in opd.__all__ if getattr(opd, name).__module__ != contracts.__name__ and name != "Message"]
    return _shown("opd", sorted(ours, key=lambda name: (name[0].isupper(), name)))


def losses() -> str:
    """The names of ``opd.losses``."""
    return _shown("opd.losses", opd.losses.__all__)


def types() -> str:
    """The contracts, in the order of the module."""
    body = ast.parse(inspect.getsource(contracts)).body
    return _shown("opd.types", [node.name for node in body if isinstance(node, ast.ClassDef)])


def _shown(package: str, listed: list[str]) -> str:
    return "\n\n".join(f"::: {package}.{name}" for name in listed)
