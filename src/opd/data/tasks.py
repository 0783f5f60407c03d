"""Prompts whose answers a program can check, and the environments they live in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from opd.axes.base import import_named
from opd.config.tasks import TASKS
from opd.errors import ConfigError, DataError, near
from opd.rewards.reactions import as_reward, users_code
from opd.types import Message, Observation, Prompt, Task


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
        raise ConfigError(
            f"{key}: there is no task '{name}'{near(name, TASKS)} Fix: give {known} or package.module:Name"
        )
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


def observe(task: Task, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
    """The task's reaction to the last turn.

    Returns:
        The observation, its reward as a float.

    Raises:
        DataError: ``step`` raises, or returns something else than an observation; the sentence names task and prompt.
    """
    name = f"{type(task).__module__}:{type(task).__qualname__}.step"
    with users_code(f"task: {name}", prompt, fix="let it return an Observation for every turn"):
        seen: Any = task.step(prompt, transcript)
    if not isinstance(seen, Observation):
        fault = f"returned {_short(seen)}"
    elif not all(isinstance(m, Mapping) and {"role", "content"} <= m.keys() for m in seen.messages):
        fault = f"gave the messages {_short(seen.messages)}, which are no mappings with role and content,"
    elif not all(len(event) == 2 and isinstance(event[1], Mapping) for event in seen.events):
        fault = f"gave the events {_short(seen.events)}, which are no pairs of a kind and a mapping,"
    else:
        return replace(seen, reward=as_reward(seen.reward, f"task: {name}", prompt))
    raise DataError(f"task: {name} {fault} on prompt '{prompt.id}'. Fix: return opd.Observation(message=…, correct=…)")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
