"""Reading run files: recipes by name, overrides, and one sentence for what is wrong. Nothing here imports torch.

Unknown keys are refused with the nearest right one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from opd.axes.base import AXES, AxisValue, class_named
from opd.axes.signals import SignalConfig
from opd.config import yaml_text
from opd.config.diffusion import DiffusionConfig
from opd.config.own_model import settle
from opd.config.problems import FAMILIES, sentence
from opd.config.renamed import RENAMED_BY_FAMILY
from opd.config.run import SOURCES, PromptsConfig, RunConfig
from opd.errors import ConfigError, near

Model = TypeVar("Model", bound=BaseModel)

RECIPES = files("opd.config") / "recipes"

PROMPT_SOURCES = frozenset({"prompts", "prompts.task", "prompts.path", "prompts.dataset", "prompts.mix"})
"""Overrides that replace a recipe's prompts; held-out prompts then have to be named too."""

ALTERNATIVES = {
    "teacher": ("weights", "model", "models"),
    "prompts": SOURCES,
    "eval.prompts": SOURCES,
}
"""Keys of which a mapping has one."""

WITHOUT = {"task": ("subset",), "path": ("split", "subset")}
"""Settings that a source of prompts does not have."""

REPLACED = {
    f"{place}.{name}": {f"{place}.{other}" for other in (*names, *WITHOUT.get(name, ())) if other != name}
    for place, names in ALTERNATIVES.items()
    for name in names
}
"""By override, the keys that it removes from the file that it overrides."""


def recipe_names(family: str | None = None) -> list[str]:
    """Names of the shipped recipes, or of those for one family of students."""
    names = sorted(p.name.removesuffix(".yaml") for p in RECIPES.iterdir() if p.name.endswith(".yaml"))
    return [name for name in names if family is None or read(name).family == family]


def read(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    at: str = "",
    starts_from: str | None = None,
) -> RunConfig | DiffusionConfig:
    """Read a recipe's name, a run file or a mapping, apply overrides and validate.

    Args:
        source: ``"hint"``, ``"my.yaml"`` or a mapping.
        overrides: ``["optimizer.lr=1e-4"]`` or ``{"optimizer.lr": 1e-4}``.
        at: where the run file stands in a pipeline's file, such as ``stages.first``.
        starts_from: the model behind a student that is given from Python or by another stage. A recipe has settings of
            its own for a student that is not bundled.

    Raises:
        ConfigError: unknown recipe, broken YAML, unknown key, wrong type or impossible combination.
    """
    if not isinstance(source, str | Path | Mapping):
        raise ConfigError(f"a run file is a name, a path or a mapping (got {source!r}). Fix: give one of these")
    tree = dict(source) if isinstance(source, Mapping) else _recipe_or_file(source, at)
    pairs = _whole_values(pairs_of(overrides))
    if source in recipe_names():
        settle(tree, str(starts_from or pairs.get("student") or tree["student"]), set_key)
        if any(key in PROMPT_SOURCES for key in pairs):
            # A user's own prompts are not evaluated on the recipe's held-out prompts.
            set_key(tree, "eval.prompts", None)
    for key in pairs.keys() & REPLACED.keys():
        for other in REPLACED[key] - pairs.keys():
            drop_key(tree, other)
    for key in sorted(pairs, key=lambda key: _depth(key, pairs)):
        set_key(tree, key, pairs[key])
    if "loss.signal" in pairs and not any(key.startswith("loss.divergence") for key in pairs):
        _drop_unused_divergence(tree)
    family = tree.get("family", "language")
    if not isinstance(family, str) or family not in FAMILIES:
        where = f"{at}.family" if at else "family"
        raise ConfigError(f"{where}: there is no family {family!r}. Fix: choose {' or '.join(FAMILIES)}")
    _refuse_renamed(tree, at, *RENAMED_BY_FAMILY[family])
    config = validate(FAMILIES[family], tree, at=at)
    # Fewer steps than a recipe's warm-up, as for a trial, are no mistake, nor is such a run when it is resumed.
    if "optimizer.warmup" in pairs and config.optimizer.warmup > config.optimizer.steps:
        raise ConfigError(
            f"{f'{at}.' if at else ''}optimizer.warmup={config.optimizer.warmup} is above optimizer.steps="
            f"{config.optimizer.steps}. Fix: lower optimizer.warmup"
        )
    return config


def _whole_values(pairs: Mapping[str, Any]) -> dict[str, Any]:
    """``loss.signal.type=X`` as ``loss.signal=X``: another value of an axis has none of the recipe's settings."""
    renamed = {f"{key}.type": key for key in (*AXES, "loss.divergence") if key not in pairs}
    return {renamed.get(key, key): value for key, value in pairs.items()}


def _depth(key: str, pairs: Mapping[str, Any]) -> int:
    """How many overrides set a mapping around this key; those come first, in whatever order they are given."""
    parts = key.split(".")
    return sum(pairs.get(".".join(parts[:n])) is not None for n in range(1, len(parts)))


def _drop_unused_divergence(tree: dict[str, Any]) -> None:
    """Leave out an inherited divergence if the signal of an override has none, or one of its own."""
    signal = _get(tree, "loss.signal")
    try:
        kind = class_named(str(signal.get("type") if isinstance(signal, Mapping) else signal), SignalConfig)
    except ValueError:  # validation says it, or it is a signal of another family
        return
    if kind is not None and (kind.token_ratios or not kind.compares):
        drop_key(tree, "loss.divergence")


def _refuse_renamed(
    tree: Mapping[str, Any], at: str, renamed: Mapping[str, str], values: Mapping[tuple[str, str], str]
) -> None:
    """Refuse old names, with the new one."""
    where = f"{at}." if at else ""
    for old, new in sorted(renamed.items(), key=lambda pair: -pair[0].count(".")):
        if _get(tree, old) is not None:
            raise ConfigError(f"{where}{old} has a new name. Fix: write {new}")
    for (key, old), fix in values.items():
        value = _get(tree, key)
        if old in (value, value.get("type") if isinstance(value, Mapping) else None):
            raise ConfigError(f"{where}{key}: '{old}' is an old value. Fix: {fix}")


def _get(tree: Any, key: str) -> Any:
    """The value at a dotted key; None if there is none."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def validate(model: type[Model], tree: Mapping[str, Any], *, at: str = "") -> Model:
    """Hold a tree against its schema.

    Args:
        at: where the tree stands in a larger file.

    Raises:
        ConfigError: the first problem, as one sentence.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(sentence(error, model, at)) from None
    except UnicodeError:
        raise ConfigError(
            f"{at or 'the run file'} has half of a character (a lone surrogate such as \\ud800). Fix: leave it out"
        ) from None
    except RecursionError:
        raise ConfigError(f"{at or 'the run file'} has too many values inside each other. Fix: correct it") from None


def load(path: Path, what: str = "run file", keys: str = "student, prompts and teacher") -> dict[str, Any]:
    """A YAML file's mapping; a key that stands there twice is refused.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(yaml_text.MAX_CHARACTERS + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot read {what} '{path}' ({reason}). Fix: check the path") from None
    try:
        tree = yaml_text.parse(text)
    except ValueError as error:
        raise ConfigError(f"'{path}' is not valid YAML: {error}. Fix: correct it") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"'{path}' is not a mapping. Fix: write keys such as {keys}")
    return tree


def _recipe_or_file(source: str | Path, at: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix or path.is_file():
        return load(path)
    if str(source) not in recipe_names():  # a folder of that name is no run file
        raise ConfigError(
            f"{f'{at}.run: ' if at else ''}there is no recipe '{source}' and no such file"
            f"{near(str(source), recipe_names())} Fix: give a run file, or one of {', '.join(recipe_names())}"
        )
    tree: dict[str, Any] = yaml_text.parse((RECIPES / f"{source}.yaml").read_text())
    return tree


def pairs_of(overrides: Any) -> dict[str, Any]:
    """Overrides by their dotted keys.

    Raises:
        ConfigError: they are neither a mapping nor a list of ``key=value`` strings.
    """
    if isinstance(overrides, Mapping):
        return dict(overrides)
    if not isinstance(overrides, list | tuple) or not all(isinstance(one, str) for one in overrides):
        raise ConfigError(
            f"overrides are a mapping or a list of strings (got {overrides!r}). Fix: write "
            "{'optimizer.steps': 50} or ['optimizer.steps=50']"
        )
    return dict(split(one) for one in overrides)


_MAPPING = re.compile(r"\s*(\[\s*)?\{\s*\w+:\s")
"""The beginning of a mapping, or of a list of mappings."""


def split(override: str) -> tuple[str, Any]:
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"override '{override}' is not of the form key=value. Fix: write it like optimizer.lr=1e-4")
    try:
        return key, yaml_text.parse(value)
    except ValueError:
        if _MAPPING.match(value):  # other texts with braces are templates
            raise ConfigError(
                f"{key}: '{value}' is no YAML. Fix: close its brackets, and quote texts with ? or : or , in it"
            ) from None
        return key, value


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key. A bare value on the way (``signal: top_k``) becomes the mapping that it stands for."""
    *path, last = key.split(".")
    for above, part in pairwise(["", *path]):
        inner = tree.get(part)
        tree[part] = dict(inner) if isinstance(inner, Mapping) else _whole(part, inner, above)
        tree = tree[part]
    tree[last] = value


def drop_key(tree: dict[str, Any], key: str) -> None:
    """Remove a dotted key, if it is there."""
    *path, last = key.split(".")
    for part in path:
        inner = tree.get(part)
        if not isinstance(inner, Mapping) and not (part == "prompts" and isinstance(inner, str)):
            return
        tree[part] = dict(inner) if isinstance(inner, Mapping) else _whole(part, inner)
        tree = tree[part]
    tree.pop(last, None)


def _whole(part: str, bare: Any, above: str = "") -> dict[str, Any]:
    """The mapping that a bare value stands for, at a key below another."""
    if isinstance(bare, AxisValue):
        return bare.model_dump()
    if isinstance(bare, list | tuple) and part == "prompts":
        return {"mix": bare}
    if isinstance(bare, str):
        return (
            dict(PromptsConfig.source(bare)) if part == "prompts" else {"model" if above == "models" else "type": bare}
        )
    if isinstance(bare, int | float) and not isinstance(bare, bool):
        return {"weight": bare}
    return {}
