"""Prompts whose answers a program can check, and the environments they live in."""

from __future__ import annotations

from typing import Any, cast

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


def get_task(name: str, *, key: str = "prompts.task") -> Task:
    """The task of a short name, or the user's own task at ``package.module:attribute``.

    The attribute is a ``Task``, or a callable without arguments that returns one.

    Args:
        key: the run file's key, for the error message.

    Raises:
        ConfigError: there is no such task, module or attribute, or the attribute is no task.
    """
    module, colon, attribute = TASKS.get(name, name).partition(":")
    if not (module and colon and attribute):
        known = ", ".join(sorted(TASKS))
        raise ConfigError(f"{key}: there is no task '{name}'. Fix: give {known} or package.module:Name")
    found = import_named(f"{module}:{attribute}", key=key)
    if isinstance(found, type) or not hasattr(found, "prompts"):
        found = _made(found, name, key)
    missing = [f"{method}()" for method in ("prompts", "step") if not callable(getattr(found, method, None))]
    if missing:
        raise ConfigError(
            f"{key}: '{name}' makes a {type(found).__name__}, which has no {' and no '.join(missing)}. Fix: a task has "
            "prompts() and step()"
        )
    return cast("Task", found)


def _made(make: Any, name: str, key: str) -> Any:
    """What a class or function of the user's makes without arguments."""
    fix = "Fix: name a task, or a class or function that makes one without arguments"
    if not callable(make):
        raise ConfigError(f"{key}: '{name}' is a {type(make).__name__}. {fix}")
    try:
        return make()
    except TypeError as error:
        raise ConfigError(f"{key}: '{name}' cannot be called ({error}). {fix}") from error
