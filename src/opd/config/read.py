"""Reading run files: recipes by name, overrides, and one sentence for what is wrong. Nothing here imports torch.

Unknown keys are refused with the nearest right one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from opd.axes.base import AXES, GIVEN, AxisValue, class_named
from opd.axes.signals import SignalConfig
from opd.config import diffusion
from opd.config.diffusion import DiffusionConfig
from opd.config.run import PromptsConfig, RunConfig
from opd.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

RECIPES = files("opd.config") / "recipes"

PROMPT_SOURCES = frozenset({"prompts", "prompts.task", "prompts.path", "prompts.dataset", "prompts.mix"})
"""Overrides that replace a recipe's prompts; held-out prompts then have to be named too."""

ONE_OF = (
    ("teacher.weights", "teacher.model", "teacher.models"),
    *(tuple(f"{key}.{name}" for name in ("task", "path", "dataset", "mix")) for key in ("prompts", "eval.prompts")),
)
"""An override of one key of a group removes the others from the file that it overrides."""

RENAMED = {
    "teacher.ema_decay": "teacher.weights={type: ema, decay: …}",
    "teacher.combine": "experimental.combine",
    "teacher.gate.overlap": "teacher.gate.min_overlap",
    "loss.positions": "loss.token_weights",
    "loss.positions.mean": "loss.aggregate",
    "loss.positions.hardest": "experimental.hardest_tokens",
    "loss.outcome": "loss.reward",
    "loss.gold": "loss.sft",
    "loss.beta": "loss.divergence={type: …, beta: …}",
    "loss.clip": "loss.signal={type: full, clip: …}",
    "loss.top_k": "loss.signal={type: top_k, k: …}",
    "loss.sampled": "loss.signal={type: sampled, …}",
    "loss.hidden": "loss.signal={type: hidden, …}",
    "loss.cross": "loss.signal={type: other_tokenizer, …}",
    "loss.unsure": "loss.signal={type: sampled, teacher_entropy: {threshold: …}}",
    "rollout.policy": "rollout.source",
    "rollout.batch": "rollout.prompts_per_step",
    "rollout.samples": "rollout.rollouts_per_prompt",
    "rollout.off_policy": "rollout.source={type: mixture, share: …}",
    "rollout.off_policy_steps": "rollout.source={type: mixture, first_steps: …}",
    "rollout.other": "rollout.source={type: mixture, other: …}",
    "rollout.offline": "rollout.source={type: recorded, prompts: …}",
    "rollout.prefix": "rollout.source={type: prefix, tokens: …}",
    "rollout.prefix_turns": "rollout.source={type: prefix, turns: …}",
    "rollout.turns_grow_every": "rollout.grow_turns_every",
    "rollout.max_rows": "rollout.engine.max_rows",
    "rollout.curriculum": "experimental.curriculum",
    "optimizer.extrapolate": "experimental.extrapolate",
    "eval.samples": "eval.rollouts_per_prompt",
    "eval.conflict": "experimental.conflict",
}
"""Old keys of a language run and the new ones. They are refused, not translated."""

RENAMED_VALUES = {
    ("loss.signal", "tokens"): "write sft",
    ("loss.signal", "cross"): "write other_tokenizer",
    ("teacher.weights", "model"): "leave it out, as teacher.model alone names another model",
    ("rollout.source", "answers"): "write references",
}
"""Old values of a language run, and the fix."""

RENAMED_BY_FAMILY: dict[str, tuple[Mapping[str, str], Mapping[tuple[str, str], str]]] = {
    "language": (RENAMED, RENAMED_VALUES),
    "diffusion": (diffusion.RENAMED, diffusion.RENAMED_VALUES),
}
"""Old keys and values of each family."""


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
    if not isinstance(source, str | Path | Mapping):
        raise ConfigError(f"a run file is a name, a path or a mapping (got {source!r}). Fix: give one of these")
    tree = dict(source) if isinstance(source, Mapping) else _recipe_or_file(source, at)
    pairs = pairs_of(overrides)
    if source in recipe_names() and any(key in PROMPT_SOURCES for key in pairs):
        # A user's own prompts are not evaluated on the recipe's held-out prompts.
        set_key(tree, "eval.prompts", None)
    for group in ONE_OF:
        if pairs.keys() & set(group):
            for other in set(group) - pairs.keys():
                drop_key(tree, other)
    for key in ("prompts", "eval.prompts"):
        # A split or subset of the source that an override replaces.
        inherited = ("split", "subset") if f"{key}.path" in pairs else ("subset",) if f"{key}.task" in pairs else ()
        for name in inherited:
            if f"{key}.{name}" not in pairs:
                drop_key(tree, f"{key}.{name}")
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
        raise ConfigError(_sentence(error, model, at)) from None


def load(path: Path, what: str = "run file", keys: str = "student, prompts and teacher") -> dict[str, Any]:
    """A YAML file's mapping; a key that stands there twice is refused.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot read {what} '{path}' ({reason}). Fix: check the path") from None
    try:
        tree = yaml.load(text, _OnceOnly)
    except yaml.YAMLError as error:
        raise ConfigError(f"'{path}' is not valid YAML: {' '.join(str(error).split())}. Fix: correct it") from None
    except UNREADABLE as error:
        raise ConfigError(f"'{path}' has a value that YAML cannot read ({error}). Fix: quote it") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"'{path}' is not a mapping. Fix: write keys such as {keys}")
    return tree


UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""Errors of PyYAML's constructors, for instance for the date 2026-13-45."""


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
        guess = f"; did you mean '{near[0]}'?" if near else "."
        raise ConfigError(
            f"{f'{at}.run: ' if at else ''}there is no recipe '{source}' and no such file{guess} Fix: give the path of "
            f"a run file, or one of {', '.join(recipe_names())}"
        )
    tree: dict[str, Any] = yaml.safe_load((RECIPES / f"{source}.yaml").read_text())
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


def split(override: str) -> tuple[str, Any]:
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"override '{override}' is not of the form key=value. Fix: write it like optimizer.lr=1e-4")
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, *UNREADABLE):
        return key, value


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key. A bare value on the way (``signal: top_k``) becomes the mapping that it stands for."""
    *path, last = key.split(".")
    for part in path:
        inner = tree.get(part)
        tree[part] = dict(inner) if isinstance(inner, Mapping) else _whole(part, inner)
        tree = tree[part]
    tree[last] = value


def drop_key(tree: dict[str, Any], key: str) -> None:
    """Remove a dotted key, if it is there."""
    *path, last = key.split(".")
    for part in path:
        inner = tree.get(part)
        if not isinstance(inner, Mapping):
            return
        tree[part] = dict(inner)
        tree = tree[part]
    tree.pop(last, None)


def _whole(part: str, bare: Any) -> dict[str, Any]:
    """The mapping that a bare value stands for."""
    if isinstance(bare, AxisValue):
        return bare.model_dump()
    if isinstance(bare, str):
        return dict(PromptsConfig.source(bare)) if part == "prompts" else {"type": bare}
    if isinstance(bare, int | float) and not isinstance(bare, bool):
        return {"weight": bare}
    return {}


def _sentence(error: ValidationError, model: type[BaseModel], at: str) -> str:
    """The first problem as one sentence, unknown keys before all else."""
    problems = [found for problem in error.errors() for found in _unnested(problem, model)]
    problems.sort(key=lambda found: found[0]["type"] != "extra_forbidden")
    first, inner = problems[0]
    where = [at] if at else []
    # A value that may be of several types has pydantic's name of a type as its last part.
    key = ".".join([*where, *(str(part) for part in first["loc"] if "[" not in str(part))])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        *parents, name = (str(part) for part in first["loc"])
        known = list(inner.model_fields if inner is not None else _fields(model, parents))
        near = [".".join([*parents, close]) for close in difflib.get_close_matches(name, known, 1)]
        meant = near or [path for path in _keys(model) if path.rpartition(".")[2] == name]
        axis = ".".join([*where, *parents])
        kind = _type_of(inner) if inner is not None else ""
        if key == "teacher.view.author" and first["input"] == GIVEN:
            return f"author: teacher.view={kind} takes no author. Fix: set teacher.view=hint{more}"
        value = f" of {axis}={kind}" if kind else ""
        known_keys = f". Fix: use one of the known keys: {', '.join(known)}"
        if elsewhere := _family_with(".".join([*parents, name]), model):
            return f"unknown key '{key}'{value}; it is a key of family={elsewhere}{known_keys}{more}"
        if others := _values_with(name, inner):
            fix = f". Fix: set {axis}={others[0]}, or leave it out"
            return f"unknown key '{key}'{value}; it is a setting of {axis}={' or '.join(others)}{fix}{more}"
        guess = f"; did you mean '{'.'.join([*where, meant[0]])}'? Fix: correct the key" if meant else known_keys
        return f"unknown key '{key}'{value}{guess}{more}"
    if first["type"] == "missing":
        return f"'{key}' is missing. Fix: set it in the file or as {key}=…{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {message}{more}" if key else f"{message}{more}"
    if first["type"] in SINGLE and isinstance(first["input"], Mapping):
        inside = next((name for name in first["input"] if name not in ("type", "weight")), "type")
        return f"unknown key '{key}.{inside}'; {key} is a single value. Fix: write {key}=…{more}"
    shape = SHAPES.get(first["type"])
    if shape:
        return f"'{key}' has to be {shape} (got {first['input']!r}). Fix: {_fix(key, first, model)}{more}"
    return f"'{key}' is {first['input']!r}: {message[0].lower()}{message[1:]}. Fix: correct {key}{more}"


SINGLE = {"float_type", "int_type", "bool_type", "string_type", "literal_error"}
"""pydantic's names of the problem that a value is no number, string or choice."""

SHAPES = {
    "model_type": "a mapping of settings",
    "model_attributes_type": "a mapping of settings",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "string_type": "a string",
}
"""What a value of the wrong type has to be, by pydantic's name of the problem."""


def _fix(key: str, problem: Any, model: type[BaseModel]) -> str:
    """What to write instead of a value of the wrong type."""
    given, kind = problem["input"], problem["type"]
    if kind == "tuple_type":
        return f"write {key}=[{'' if given is None or isinstance(given, Mapping) else given}]"
    if kind == "string_type":
        return f"put a name there, as in {key}=NAME"
    if kind == "dict_type":
        return f"write {key}={{NAME: …}}"
    *parents, name = [str(part) for part in problem["loc"]]
    field = _fields(model, parents).get(name)
    settings = ", ".join(_fields(model, [*parents, name]))
    without = f"{key}=null to disable it" if field is not None and field.default is None else f"leave {key} out"
    return f"write {key}={{NAME: …}} with settings ({settings}), or {without}"


def _unnested(problem: Any, model: type[BaseModel]) -> list[tuple[Any, type[BaseModel] | None]]:
    """The problems inside a value of an axis, with their whole place and the schema there."""
    if problem["type"] != "axis":
        return [(problem, None)]
    inner, owner = problem["ctx"]["inner"], problem["ctx"]["model"]
    found: list[tuple[Any, type[BaseModel] | None]] = []
    for one in inner.errors():
        for deeper, schema in _unnested(one, owner):
            known = schema if schema is not None else _schema(owner, [str(part) for part in deeper["loc"][:-1]])
            found.append(({**deeper, "loc": (*problem["loc"], *deeper["loc"])}, known))
    return found


def _type_of(schema: type[BaseModel]) -> str:
    """The type that names a value of an axis; empty for any other mapping."""
    default = schema.model_fields["type"].default if issubclass(schema, AxisValue) else ""
    return default if isinstance(default, str) else ""


def _values_with(name: str, schema: type[BaseModel] | None) -> list[str]:
    """The other values of a value's axis that have this setting."""
    if schema is None or not issubclass(schema, AxisValue):
        return []
    return [kind for kind, other in AXES.get(schema.axis, {}).items() if name in other.model_fields]


def _family_with(path: str, model: type[BaseModel]) -> str | None:
    """The other family of students whose run file has this key."""
    others = {family: schema for family, schema in FAMILIES.items() if schema is not model}
    if len(others) == len(FAMILIES):  # not a whole run file
        return None
    return next((family for family, schema in others.items() if path in {*schema.model_fields, *_keys(schema)}), None)


def _keys(model: type[BaseModel]) -> Iterator[str]:
    """Every dotted key inside the mappings of a schema."""
    for name in model.model_fields:
        inner = _fields(model, [name])
        if inner is not model.model_fields:
            yield from (f"{name}.{key}" for key in inner)


def _fields(model: type[BaseModel], parents: Sequence[str]) -> Mapping[str, Any]:
    """Field names of the model at a path."""
    return _schema(model, parents).model_fields


def _schema(model: type[BaseModel], parents: Sequence[str]) -> type[BaseModel]:
    """The model at a path."""
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
    return model
