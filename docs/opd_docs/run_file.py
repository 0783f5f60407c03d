"""The run file's keys, read from the schema that checks run files: types, defaults, bounds, and the strings below."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from opd.config import RunConfig
from opd.config.base import Strict
from opd.stages.config import PipelineConfig
from opd_docs.tables import prose, table

HEADER = ("key", "value", "default", "meaning")

WORDS = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", type(None): "`null`"}


def run_file() -> str:
    """Every key of a run file, a section a block."""
    return "\n\n".join(_sections(RunConfig, "", {}))


def pipeline_file() -> str:
    """Every key of a pipeline's file."""
    return "\n\n".join(_sections(PipelineConfig, "", {RunConfig: "", **_homes(RunConfig, "")}))


def keys(model: type[BaseModel], at: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key with its field, nested ones dotted; a block that stands in several places once."""
    for place, block in _blocks(model, at).items():
        for name, info in block.model_fields.items():
            yield f"{place}.{name}".lstrip("."), info


def _blocks(model: type[BaseModel], at: str) -> dict[str, type[BaseModel]]:
    """Blocks by the key that holds them, the outer before the inner."""
    found, seen = {at: model}, {model}

    def walk(block: type[BaseModel], place: str) -> None:
        for name, info in block.model_fields.items():
            for inner, suffix in _inner(info.annotation):
                if inner not in seen:
                    key = f"{place}.{name}{suffix}".lstrip(".")
                    seen.add(inner)
                    found[key] = inner
                    walk(inner, key)

    walk(model, at)
    return found


def _homes(model: type[BaseModel], at: str) -> dict[type[BaseModel], str]:
    return {block: place for place, block in _blocks(model, at).items()}


def _sections(model: type[BaseModel], at: str, known: dict[type[BaseModel], str]) -> Iterator[str]:
    homes = {**_homes(model, at), **known}
    for place, block in _blocks(model, at).items():
        if block in known:
            continue
        if place != at:
            yield f"### {place}"
        if said := _said(block):
            yield said
        rows = [
            [f"`{name}`", _value(info, homes), _default(info), prose(info.description or "")]
            for name, info in block.model_fields.items()
        ]
        yield table(HEADER, [[*row[:3], row[3] or _said_by_block(row[0], block)] for row in rows])


def _said(block: type[BaseModel]) -> str:
    """A block's own docstring; one inherited from pydantic says nothing about it."""
    own = block.__dict__.get("__doc__")
    return prose(inspect.cleandoc(own)) if own else ""


def _said_by_block(key: str, block: type[BaseModel]) -> str:
    """A key without a string below it is a block, which says itself what it is."""
    inner = next((b for b, _ in _inner(block.model_fields[key.strip("`")].annotation)), None)
    return _said(inner).split("\n\n")[0] if inner else ""


def _inner(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """Blocks in a type, and how a key below them is written: ``.NAME`` in a mapping from names."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        yield annotation, ""
    elif get_origin(annotation) is dict:
        for inner, suffix in _inner(get_args(annotation)[1]):
            yield inner, f".NAME{suffix}"
    elif get_origin(annotation) is not Literal:
        for argument in get_args(annotation):
            yield from _inner(argument)


def _value(info: FieldInfo, homes: dict[type[BaseModel], str]) -> str:
    return ", ".join([_type(info.annotation, homes), *_bounds(info.metadata)])


def _type(annotation: Any, homes: dict[type[BaseModel], str]) -> str:
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        home = homes[annotation]
        return f"[keys](#{_anchor(home)})" if home else "a run file's keys"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(argument, homes) for argument in arguments if argument is not type(None))
    if origin is tuple and len(arguments) == 2 and arguments[1] is not Ellipsis:
        return f"[{', '.join(_type(argument, homes) for argument in arguments)}]"
    if origin is tuple:
        return f"list of {_type(arguments[0], homes)}"
    if origin is dict:
        return f"mapping from names to {_type(arguments[1], homes)}"
    return WORDS[annotation]


def _anchor(place: str) -> str:
    return place.replace(".", "").lower()


def _bounds(metadata: list[Any]) -> Iterator[str]:
    signs = {annotated_types.Ge: ("ge", "≥"), annotated_types.Gt: ("gt", ">")}
    signs |= {annotated_types.Le: ("le", "≤"), annotated_types.Lt: ("lt", "<")}
    for bound in metadata:
        if isinstance(bound, annotated_types.MinLen):
            yield f"at least {bound.min_length}"
        elif type(bound) in signs:
            name, sign = signs[type(bound)]
            yield f"{sign} {getattr(bound, name):g}"


def _default(info: FieldInfo) -> str:
    if info.default is PydanticUndefined:
        return "required"
    if isinstance(info.default, BaseModel):
        return "its defaults"
    if info.default is None:
        return "–"
    return f"`{json.dumps(info.default)}`" if not isinstance(info.default, str) else f"`{info.default}`"
