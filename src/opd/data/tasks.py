"""Prompts whose answers a program can check, and the environments they live in."""

from __future__ import annotations

from typing import cast

from opd.axes.base import import_named
from opd.errors import ConfigError
from opd.types import Task

TASKS: dict[str, str] = {
    "tools": "opd.nano.tasks.tools:ToolsTask",
    "math": "opd.nano.tasks.math:MathTask",
    "strings": "opd.nano.tasks.strings:StringsTask",
    "search": "opd.nano.tasks.search:SearchTask",
}
"""Tasks of the bundled models by short name; they are imported when a run asks for them."""


def get_task(name: str) -> Task:
    """The task called ``name``: a built-in one, or ``package.module:attribute`` for the user's own.

    The attribute is a ``Task``, or something that returns one when called without arguments.

    Raises:
        ConfigError: No such task, module or attribute, or the attribute is no task.
    """
    module, colon, attribute = TASKS.get(name, name).partition(":")
    if not (module and colon and attribute):
        known = ", ".join(sorted(TASKS))
        raise ConfigError(f"Unknown task {name!r}: use {known}, or 'package.module:attribute' for your own.")
    return _import_task(name, module, attribute)


def _import_task(name: str, module: str, attribute: str) -> Task:
    found = import_named(f"{module}:{attribute}", key="prompts.task")
    if isinstance(found, type) or not hasattr(found, "prompts"):
        if not callable(found):
            raise ConfigError(f"Task {name!r} is a {type(found).__name__}, not a task or a function that makes one.")
        found = found()
    missing = [method for method in ("prompts", "step") if not callable(getattr(found, method, None))]
    if missing:
        raise ConfigError(f"Task {name!r} makes a {type(found).__name__} without {' and '.join(missing)}().")
    return cast("Task", found)
