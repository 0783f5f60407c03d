"""A user's Python functions as tools: their schemas, and calls of them in a process of its own."""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from opd.axes.base import import_named
from opd.data.worker import Worker
from opd.errors import ConfigError

WORKER = Path(__file__).with_name("tool_worker.py")

HUNG = 1
"""Exit status of a worker whose function took too long; on a busy machine it may also take long to start."""


class ToolError(Exception):
    """A function raised, hung, or ended its process; the text is for the student."""


def named_functions(name: str, *, key: str = "prompts.tools") -> dict[str, Callable[..., Any]]:
    """The functions at ``package.module:NAME`` by their names: a list, a mapping of names, or one function.

    Raises:
        ConfigError: there is no such module or name, or something there cannot be called.
    """
    found = import_named(name, key=key)
    if isinstance(found, Mapping):
        functions = dict(found)
    elif isinstance(found, Iterable):
        functions = {getattr(one, "__name__", repr(one)): one for one in found}
    else:
        functions = {getattr(found, "__name__", repr(found)): found}
    wrong = next((repr(one) for one in functions.values() if not callable(one)), None)
    if wrong or not functions:
        raise ConfigError(f"{key}: '{name}' has {wrong or 'no function'}. Fix: name a list of functions")
    return functions


class Functions:
    """Functions that the student may call.

    A call runs in a process of its own, which imports the functions by name, because only a process can be ended when a
    call hangs. A function must not count on what an earlier call left in memory.

    Args:
        name: ``package.module:NAME`` of the functions.
        timeout: seconds for a call.
        key: the run file's key, for errors.

    Raises:
        ConfigError: a function has no type hints or no docstring from which its schema could be made, or has arguments
            that cannot be given by name.
    """

    def __init__(self, name: str, *, timeout: float, key: str) -> None:
        self.timeout = timeout
        self.schemas = {
            function: _schema(one, function, key) for function, one in named_functions(name, key=key).items()
        }
        self._worker = Worker(WORKER, json.dumps([name, timeout, sys.path]))

    def close(self) -> None:
        """End the process; a later call starts it again."""
        self._worker.stop()

    def call(self, function: str, arguments: Mapping[str, Any]) -> str:
        """The function's result as text: a string as it is, anything else as JSON.

        Raises:
            ToolError: it raised, took more than ``timeout`` seconds, or ended its process.
        """
        started = time.perf_counter()
        reply = self._worker.ask([function, dict(arguments)])
        if reply is None:
            if self._worker.status != HUNG or time.perf_counter() - started < self.timeout:
                raise ToolError(f"{function} ended its process")
            raise ToolError(f"{function} took more than {self.timeout:g} s")
        answer = json.loads(reply)
        if "error" in answer:
            raise ToolError(answer["error"])
        result: str = answer["result"]
        return result


def _schema(function: Callable[..., Any], name: str, key: str) -> dict[str, Any]:
    from transformers.utils import get_json_schema

    if not inspect.isroutine(function):
        raise ConfigError(f"{key}: {name} is no function. Fix: name functions that are written with def")
    try:
        schema: dict[str, Any] = get_json_schema(function)["function"]
    except Exception as error:  # the library raises several kinds about docstrings and hints
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        raise ConfigError(
            f"{key}: function '{name}' has no schema ({reason}). Fix: give each argument a line under 'Args:' in the "
            "docstring, and a type hint of int, float, str, bool, Enum, Literal, list, tuple, dict or a union of these"
        ) from None
    _check_named(function, name, key)
    return {**schema, "name": name}


def _check_named(function: Callable[..., Any], name: str, key: str) -> None:
    """Refuse a function that cannot be called with named arguments, as calls of tools give them, or gives no value.

    Raises:
        ConfigError: it has an argument without a name of its own, or is a generator.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"{key}: function '{name}' is a generator. Fix: return a list")
    unnamed = {
        inspect.Parameter.POSITIONAL_ONLY: "",
        inspect.Parameter.VAR_POSITIONAL: "*",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    for one in inspect.signature(function).parameters.values():
        if one.kind in unnamed:
            raise ConfigError(
                f"{key}: function '{name}' has '{unnamed[one.kind]}{one.name}', which a call cannot give by its name. "
                "Fix: write it as an ordinary argument"
            )
