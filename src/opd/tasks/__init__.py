"""Prompts whose answers a program can check, and the environments they live in."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast

from opd.errors import ConfigError
from opd.tasks.math import MathTask
from opd.tasks.search import SearchTask
from opd.tasks.strings import StringsTask
from opd.tasks.tools import ToolsTask
from opd.types import Task

__all__ = ["TASKS", "MathTask", "SearchTask", "StringsTask", "ToolsTask", "get_task"]

TASKS: dict[str, Callable[[], Task]] = {
    "tools": ToolsTask,
    "math": MathTask,
    "strings": StringsTask,
    "search": SearchTask,
}
"""Built-in tasks by name; a new one is one line here."""


def get_task(name: str) -> Task:
    """The task called ``name``: a built-in one, or ``package.module:attribute`` for the user's own.

    The attribute is a ``Task``, or something that returns one when called without arguments.

    Raises:
        ConfigError: No such task, module or attribute, or the attribute is no task.
    """
    if name in TASKS:
        return TASKS[name]()
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        known = ", ".join(sorted(TASKS))
        raise ConfigError(f"Unknown task {name!r}: use {known}, or 'package.module:attribute' for your own.")
    return _import_task(name, module, attribute)


def _import_task(name: str, module: str, attribute: str) -> Task:
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"Task {name!r} cannot be imported: {error}.") from error
    if isinstance(found, type) or not hasattr(found, "prompts"):
        if not callable(found):
            raise ConfigError(f"Task {name!r} is a {type(found).__name__}, not a task or a function that makes one.")
        found = found()
    missing = [method for method in ("prompts", "step") if not callable(getattr(found, method, None))]
    if missing:
        raise ConfigError(f"Task {name!r} makes a {type(found).__name__} without {' and '.join(missing)}().")
    return cast("Task", found)
