"""A recipe's settings for a model of one's own. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opd.config.run import BaseRun
from opd.models.bundled import is_bundled


def settle(tree: dict[str, Any], student: str, set_key: Callable[[dict[str, Any], str, Any], None]) -> None:
    """Choose between a recipe's settings for bundled models and those for others, and note the choice.

    Args:
        tree: the recipe, before any override.
        student: what will be trained.
        set_key: sets a dotted key of a tree.
    """
    own = (tree.get("method") or {}).get("own_model") or {}
    bundled = is_bundled(student)
    for key, value in own.items() if not bundled else ():
        set_key(tree, key, value)
    set_key(tree, "method.settings", "bundled" if bundled else "own model")


def settings_taken(config: BaseRun) -> str:
    """Which of a recipe's settings the run took, as a line; empty for a run that is no recipe."""
    method = config.method
    if method is None or method.settings is None:
        return ""
    if method.settings == "bundled":
        return "the recipe's settings for bundled models; a model of your own gets others (opd methods NAME)"
    run = config.model_dump(mode="json")
    known = {key: _at(run, key) for key in method.own_model if not isinstance(method.own_model[key], Mapping)}
    taken = [f"{key}={value}" for key, value in known.items() if value == _number(method.own_model[key])]
    yours = [f"{key}={value}" for key, value in known.items() if value != _number(method.own_model[key])]
    return f"the recipe's settings for a model of your own: {', '.join(taken)}" + (
        f"; overridden: {', '.join(yours)}" if yours else ""
    )


def _number(value: Any) -> Any:
    """A value as the schema reads it: YAML takes 1e-6 for text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree
