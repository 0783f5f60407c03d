"""Reading run files: recipes by name, overrides, and one sentence for what is wrong. Nothing here imports torch.

Unknown keys are refused with the nearest right one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from opd.config import DiffusionConfig, RunConfig
from opd.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

RECIPES = files("opd.config") / "recipes"

PROMPT_SOURCES = frozenset({"prompts", "prompts.task", "prompts.path", "prompts.dataset", "prompts.mix"})
"""Overrides that replace a recipe's prompts; held-out prompts then have to be named too."""

ONE_OF = {"teacher.model": "teacher.models", "teacher.models": "teacher.model"}
"""An override of one of them takes the other away from what it overrides."""


FAMILIES: dict[str, type[RunConfig] | type[DiffusionConfig]] = {"language": RunConfig, "diffusion": DiffusionConfig}
"""The schema of each family of students."""


def recipe_names(family: str | None = None) -> list[str]:
    """Names of the shipped recipes, or of those for one family of students."""
    names = sorted(p.name.removesuffix(".yaml") for p in RECIPES.iterdir() if p.name.endswith(".yaml"))
    return [name for name in names if family is None or read(name).family == family]


def read(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any] = (), *, at: str = ""
) -> RunConfig | DiffusionConfig:
    """Read a recipe's name, a run file or a mapping, apply overrides and validate.

    Args:
        source: ``"hint"``, ``"my.yaml"`` or a mapping.
        overrides: ``["optimizer.lr=1e-4"]`` or ``{"optimizer.lr": 1e-4}``.
        at: where the run file stands in a pipeline's file, such as ``stages.first``.

    Raises:
        ConfigError: unknown recipe, broken YAML, unknown key, wrong type or impossible combination.
    """
    tree = dict(source) if isinstance(source, Mapping) else _recipe_or_file(source, at)
    pairs = dict(overrides) if isinstance(overrides, Mapping) else dict(split(o) for o in overrides)
    if source in recipe_names() and any(key in PROMPT_SOURCES for key in pairs):
        # Who brings prompts of their own does not want to be measured on the recipe's.
        set_key(tree, "eval.prompts", None)
    for key in ONE_OF.keys() & pairs.keys():
        set_key(tree, ONE_OF[key], None)
    for key, value in pairs.items():
        set_key(tree, key, value)
    family = tree.get("family", "language")
    if family not in FAMILIES:
        where = f"{at}.family" if at else "family"
        raise ConfigError(f"'{where}' is {family!r}: there are {' and '.join(FAMILIES)}")
    return validate(FAMILIES[family], tree, at=at)


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
        raise ConfigError(_sentence(error, model, at)) from None


def load(path: Path, what: str = "run file", keys: str = "student, prompts and teacher") -> dict[str, Any]:
    """A YAML file's mapping; a key that stands there twice is refused.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {what} '{path}': {error}") from None
    try:
        tree = yaml.load(text, _OnceOnly)
    except yaml.YAMLError as error:
        raise ConfigError(f"'{path}' is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"'{path}' has to be a mapping of keys such as {keys}")
    return tree


class _OnceOnly(yaml.SafeLoader):
    """YAML in which a key stands once; PyYAML alone would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in seen:
                problem = f"'{key.value}' stands twice, on lines {seen[key.value]} and {line}; rename or delete one"
                raise yaml.YAMLError(problem)
            seen[key.value] = line
        return super().construct_mapping(node, deep)


def _recipe_or_file(source: str | Path, at: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix or path.is_file():
        return load(path)
    if str(source) not in recipe_names():  # a folder of that name is no run file
        near = difflib.get_close_matches(str(source), recipe_names(), 1)
        guess = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"{f'{at}.run: ' if at else ''}there is no recipe '{source}' (shipped: {', '.join(recipe_names())}) and no "
            f"such file{guess}"
        )
    tree: dict[str, Any] = yaml.safe_load((RECIPES / f"{source}.yaml").read_text())
    return tree


def split(override: str) -> tuple[str, Any]:
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"override '{override}' is not of the form key=value, such as optimizer.lr=1e-4")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        return key, value


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; a scalar on the way (``author: rules``) gives way to a mapping."""
    *path, last = key.split(".")
    for part in path:
        inner = tree.get(part)
        tree[part] = dict(inner) if isinstance(inner, Mapping) else {}
        tree = tree[part]
    tree[last] = value


def _sentence(error: ValidationError, model: type[BaseModel], at: str) -> str:
    """The first problem as one sentence, unknown keys before all else."""
    problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = problems[0]
    where = [at] if at else []
    key = ".".join([*where, *(str(part) for part in first["loc"])])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        *parents, name = (str(part) for part in first["loc"])
        known = list(_fields(model, parents))
        near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
        mend = f"did you mean '{'.'.join([*where, *parents, near[0]])}'?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key '{key}'; {mend}{more}"
    if first["type"] == "missing":
        return f"'{key}' is missing; set it in the file or as {key}=…{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {message}{more}" if key else f"{message}{more}"
    return f"'{key}' is {first['input']!r}: {message[0].lower()}{message[1:]}{more}"


def _fields(model: type[BaseModel], parents: Sequence[str]) -> Mapping[str, Any]:
    """Field names of the model at a path."""
    for part in parents:
        candidates = [model.model_fields[part].annotation] if part in model.model_fields else []
        inner = [
            a
            for c in candidates
            for a in (c, *getattr(c, "__args__", ()))
            if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if not inner:
            break
        model = inner[0]
    return model.model_fields
