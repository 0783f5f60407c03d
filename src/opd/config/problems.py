"""What is wrong with a run file, as one sentence: pydantic's problems in the words of the run file."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from opd.axes.base import AXES, GIVEN, AxisValue
from opd.config.diffusion import DiffusionConfig
from opd.config.run import RunConfig

FAMILIES: dict[str, type[RunConfig] | type[DiffusionConfig]] = {"language": RunConfig, "diffusion": DiffusionConfig}
"""The schema of each family of students."""

MOST_SHOWN = 200
"""Characters of a value in an error."""


def sentence(error: ValidationError, model: type[BaseModel], at: str) -> str:
    """The first problem as one sentence, unknown keys before all else."""
    problems = [found for problem in error.errors() for found in _unnested(problem, model)]
    # A mapping that fits none of several types is wrong inside the one that takes mappings.
    outside = [found for found in problems if not (_wanted(found[0]) and isinstance(found[0]["input"], Mapping))]
    problems = outside or problems
    problems.sort(key=lambda found: found[0]["type"] != "extra_forbidden")
    first, inner = problems[0]
    where = [at] if at else []
    key = ".".join([*where, *_place(first)])
    same = [found for found, _ in problems if _place(found) == _place(first)]
    rest = len(problems) - len(same)
    more = f" (and {rest} more to correct)" if rest else ""
    if first["type"] == "extra_forbidden":
        *parents, name = _place(first)
        known = list(inner.model_fields if inner is not None else _fields(model, parents))
        near = [".".join([*parents, close]) for close in difflib.get_close_matches(name, known, 1)]
        meant = [path for path in _keys(model) if path.rpartition(".")[2] == name] or near
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
    if wanted := [text for found in same if (text := _wanted(found))]:
        one_of = ", ".join(wanted[:-1]) + f" or {wanted[-1]}" if len(wanted) > 1 else wanted[0]
        return f"'{key}' has to be {one_of} (got {shown(first['input'])}). Fix: write one of these{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {message}{more}" if key else f"{message}{more}"
    if first["type"] in SINGLE and isinstance(first["input"], Mapping):
        inside = next((name for name in first["input"] if name not in ("type", "weight")), "type")
        return f"unknown key '{key}.{inside}'; {key} is a single value. Fix: write {key}=…{more}"
    shape = SHAPES.get(first["type"])
    if shape:
        return f"'{key}' has to be {shape} (got {shown(first['input'])}). Fix: {_fix(key, first, model)}{more}"
    return f"'{key}' is {shown(first['input'])}: {message[0].lower()}{message[1:]}. Fix: correct {key}{more}"


SCALARS = {"bool": "true, false", "int": "a whole number", "float": "a number", "str": "a string"}
"""What a value of one of several types may be, by pydantic's name of the type."""


def _place(problem: Any) -> list[str]:
    """The parts of a problem's key, without those by which pydantic names one of several types."""
    parts = [str(part) for part in problem["loc"]]
    last = parts[-1:] if problem["type"] == "extra_forbidden" else []  # whatever it looks like, it is a key
    if last or (parts and parts[-1] in SCALARS):
        parts.pop()
    return [part for part in parts if "[" not in part and not (part.endswith("Config") and part[0].isupper())] + last


def _wanted(problem: Any) -> str:
    """What one of several types wants; empty if the key has one type."""
    last = str(problem["loc"][-1]) if problem["loc"] else ""
    if last.startswith("literal["):
        return last.removeprefix("literal[").removesuffix("]").replace("'", "").replace(",", ", ")
    return "a list" if last.startswith("tuple[") else SCALARS.get(last, "")


def shown(value: Any) -> str:
    """A value in an error; the middle of a long one is left out."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN // 2]}…{text[-MOST_SHOWN // 2 :]}"


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
        inner = [a for c in candidates for a in _parts(c) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            if part.isdecimal():  # of a list
                continue
            break
        model = inner[0]
    return model


def _parts(annotation: Any) -> Iterator[Any]:
    """A type and every type inside it."""
    yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _parts(inner)
