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
"""Import paths of the bundled models' tasks by short name; a task is imported when a run names it."""


def get_task(name: str) -> Task:
    """The task of a short name, or the user's own task at ``package.module:attribute``.

    The attribute is a ``Task``, or a callable without arguments that returns one.

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
