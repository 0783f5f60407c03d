"""Expected calls of a prompt, and whether the calls that were made are these."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opd.data.tool_calls import Call

_IGNORED = re.compile(r"[ ,./\-_*^]")
"""Characters of texts that BFCL does not compare."""


@dataclass(frozen=True)
class ExpectedCall:
    """A call with the values that each argument may have.

    Attributes:
        name: of the tool.
        allowed: by argument, its possible values; an empty text among them allows to leave the argument out.
    """

    name: str
    allowed: Mapping[str, Sequence[Any]]

    def is_met(self, call: Call) -> bool:
        """Whether a call has this name and, for every argument, one of the possible values."""
        given = call.arguments
        if call.name != self.name or given.keys() - self.allowed.keys():
            return False
        return all(self._allows(call, name) for name in self.allowed)

    def first_other(self, call: Call) -> str | None:
        """The first argument of a call of this tool that is not among its possible values; None if one is missing."""
        return next((name for name in call.arguments if name not in self.allowed or not self._allows(call, name)), None)

    def _allows(self, call: Call, name: str) -> bool:
        values = self.allowed[name]
        return any(_equal(call.arguments[name], v) for v in values) if name in call.arguments else "" in values


def read_expected(given: Any) -> tuple[ExpectedCall, ...]:
    """Expected calls from a row.

    Args:
        given: a list of ``{"name": …, "arguments": {…}}``, or of BFCL's possible answers ``{NAME: {ARGUMENT: [value,
            …]}}``. Empty if no call is right.

    Raises:
        ValueError: it is no such list; the sentence has no key.
    """
    if isinstance(given, str):  # tables hold lists as text
        given = _parsed(given)
    if not isinstance(given, list | tuple):
        raise ValueError(f"'calls' is no list ({given!r}). Fix: write [{{'name': …, 'arguments': {{…}}}}, …]")
    return tuple(_expected(one) for one in given)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _expected(given: Any) -> ExpectedCall:
    if isinstance(given, Mapping) and isinstance(given.get("name"), str):
        arguments = given.get("arguments", {})
        if isinstance(arguments, Mapping):
            return ExpectedCall(given["name"], {name: [_Exactly(value)] for name, value in arguments.items()})
    elif isinstance(given, Mapping) and len(given) == 1:
        ((name, allowed),) = given.items()
        if isinstance(allowed, Mapping) and all(isinstance(values, list) for values in allowed.values()):
            return ExpectedCall(str(name), {name: values or [[]] for name, values in allowed.items()})
    raise ValueError(
        f"'calls' has {given!r}. Fix: write {{'name': …, 'arguments': {{…}}}}, or {{NAME: {{ARGUMENT: [value, …]}}}}"
    )


def are_met(expected: Sequence[ExpectedCall], calls: Sequence[Call]) -> bool:
    """Whether the calls are the expected ones, each once and in any order."""
    if len(expected) != len(calls):
        return False
    if not expected:
        return True
    first, *rest = expected
    return any(first.is_met(call) and are_met(rest, [*calls[:n], *calls[n + 1 :]]) for n, call in enumerate(calls))


@dataclass(frozen=True)
class _Exactly:
    """A value whose mappings hold values, and not lists of possible values."""

    value: Any


def _equal(given: Any, wanted: Any, *, exactly: bool = False) -> bool:
    """Whether a value is a possible one: texts without case and punctuation, numbers as numbers."""
    if isinstance(wanted, _Exactly):
        return _equal(given, wanted.value, exactly=True)
    if isinstance(wanted, str) and isinstance(given, str):
        return _plain(given) == _plain(wanted)
    if isinstance(wanted, bool) or isinstance(given, bool):
        return given is wanted
    if isinstance(wanted, list | tuple) and isinstance(given, list):
        pairs = zip(given, wanted, strict=False)
        return len(given) == len(wanted) and all(_equal(a, b, exactly=exactly) for a, b in pairs)
    if isinstance(wanted, Mapping) and isinstance(given, Mapping):
        allowed = {name: [value] if exactly else value for name, value in wanted.items()}
        if given.keys() - allowed.keys():
            return False
        return all(
            any(_equal(given[name], value, exactly=exactly) for value in values) if name in given else "" in values
            for name, values in allowed.items()
        )
    return bool(given == wanted)


def _plain(text: str) -> str:
    return _IGNORED.sub("", text).lower().replace("'", '"')
