"""The run file's keys, from its schema: types, defaults, bounds and field docstrings."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from opd.axes.base import AXES, GIVEN, AxisValue
from opd.config.base import Strict
from opd.config.diffusion import DiffusionConfig
from opd.config.run import RunConfig
from opd.pipelines.config import PipelineConfig
from opd_docs.tables import prose, table

HEADER = ("key", "value", "default", "meaning")

WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    type(None): "`null`",
    Any: "any value",
}


class Block(NamedTuple):
    """A part of the schema and the place of its keys in the file."""

    heading: str
    place: str
    """Dotted prefix of its keys; empty for the whole file."""
    model: type[BaseModel]


PAGES = {
    "prompts": ("prompts",),
    "teacher": ("teacher",),
    "rollout": ("rollout",),
    "loss": ("loss",),
    "optimizer": ("optimizer", "lora", "save"),
    "eval": ("eval", "guards", "checkpoint", "report"),
    "more": (),
}
"""Pages of the reference, each with the keys that it has; the last has all others."""


TITLES = {
    "more": ("Run file: other keys", ""),
    "diffusion": (
        "Run file: denoising models",
        "With `family: diffusion` a run file has these keys. The keys of optimizer, guards and checkpoint are those of "
        "any run file.",
    ),
    "pipeline": (
        "Pipeline file",
        "A training stage has `run` and any key of a run file except `out`, dotted or nested.",
    ),
}
"""Titles of pages that are not named after their keys, and what stands at their beginning."""


def run_file() -> str:
    """Every key of a run file, one section per block."""
    return "\n\n".join(_sections(blocks(RunConfig), {}))


def keys_of_the_file() -> str:
    """The keys at the top of a run file, with links to their pages."""
    whole, *inner = blocks(RunConfig)
    return _relinked("\n\n".join(_sections([whole], {block.model: block.heading for block in inner})))


def pages() -> dict[str, str]:
    """The pages of the reference by file name: a part of the run file each, denoising models, pipelines."""
    homes = {block.model: block.heading for block in blocks(RunConfig)}
    parts = {
        name: "\n\n".join(_sections([b for b in blocks(RunConfig) if _page(b.heading) == name], homes))
        for name in PAGES
    }
    parts |= {"diffusion": denoising_file(), "pipeline": pipeline_file()}
    found = {}
    for name, text in parts.items():
        title, said = TITLES.get(name, (f"Run file: {', '.join(PAGES.get(name, ()))}", ""))
        lowered = _relinked(text).replace("### ", "## ")
        found[f"reference/run-file-{name}.md"] = f"# {title}\n\n{said}\n\n{lowered}\n"
    return found


def _page(heading: str) -> str:
    """The page that a block is on; empty for the whole file."""
    key = heading.partition(".")[0].partition(" ")[0]
    return next((name for name, keys in PAGES.items() if key in keys), "more") if key else ""


def _relinked(text: str) -> str:
    """The same text with its links to blocks leading to their pages."""
    page = {_anchor(block.heading): _page(block.heading) for block in blocks(RunConfig)}
    denoising = {_anchor(heading): "diffusion" for heading in _headings(denoising_file())}
    page |= denoising | {_anchor(heading): "pipeline" for heading in _headings(pipeline_file()) if heading}

    def link(match: re.Match[str]) -> str:
        name = page.get(match[1], "")
        return f"](run-file-{name}.md#{match[1]})" if name else "](run-file.md#keys)"

    return re.sub(r"\]\(#([^)]+)\)", link, text)


def _headings(text: str) -> list[str]:
    return re.findall(r"^### (.+)$", text, re.MULTILINE)


def denoising_file() -> str:
    """The keys of a denoising run that a language run lacks."""
    return _beyond_a_run_file(DiffusionConfig, "denoising ")


def pipeline_file() -> str:
    """The keys of a pipeline's file that a run file lacks."""
    return _beyond_a_run_file(PipelineConfig)


def _beyond_a_run_file(model: type[BaseModel], prefix: str = "") -> str:
    """The blocks of a schema that a run file lacks, with a prefix before each heading."""
    known = {block.model: block.heading for block in blocks(RunConfig)}
    ours = [block._replace(heading=prefix + block.heading) for block in blocks(model) if block.model not in known]
    return "\n\n".join(_sections(ours, known))


def blocks(model: type[BaseModel]) -> list[Block]:
    """The blocks of a schema, outer before inner; a repeated block is listed once."""
    found = [Block("", "", model)]

    def walk(block: Block) -> None:
        for name, info in block.model.model_fields.items():
            inner = list(_inner(info.annotation))
            for part, suffix in inner:
                if part not in {known.model for known in found}:
                    place = f"{block.place}.{name}{suffix}".lstrip(".")
                    kind = f" with {next(iter(part.model_fields))}" if len(inner) > 1 else ""
                    kind = f": {part.model_fields['type'].default}" if issubclass(part, AxisValue) else kind
                    found.append(Block(place + kind, place, part))
                    walk(found[-1])

    walk(found[0])
    return found


def _sections(shown: Sequence[Block], known: Mapping[type[BaseModel], str]) -> Iterator[str]:
    homes = {**known, **{block.model: block.heading for block in shown}}
    for block in shown:
        if block.heading:
            yield f"### {block.heading}"
        if said := _said(block.model):
            yield said
        rows = [_row(name, info, homes) for name, info in block.model.model_fields.items() if not _is_type(block, name)]
        if rows:
            yield f'<div class="keys" markdown="1">\n\n{table(HEADER, rows)}\n\n</div>'


def _is_type(block: Block, name: str) -> bool:
    """Whether a key only repeats the name of a value of an axis."""
    return name == "type" and issubclass(block.model, AxisValue)


def _row(name: str, info: FieldInfo, homes: Mapping[type[BaseModel], str]) -> list[str]:
    return [f"`{name}`", _value(info, homes), _default(info), prose(info.description or "") or _said_by_block(info)]


def _said(block: type[BaseModel]) -> str:
    """The docstring of a block; empty if it is inherited from pydantic."""
    own = block.__dict__.get("__doc__")
    return prose(inspect.cleandoc(own)) if own else ""


def _said_by_block(info: FieldInfo) -> str:
    """The docstring of a key's block, for keys without a docstring of their own."""
    inner = next((part for part, _ in _inner(info.annotation)), None)
    return _said(inner).split("\n\n")[0] if inner else ""


def _inner(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """Blocks in a type, with ``.NAME`` for a mapping from names."""
    if isinstance(annotation, type) and issubclass(annotation, AxisValue):
        for part in _values(annotation).values():
            yield part, ""
    elif isinstance(annotation, type) and issubclass(annotation, Strict):
        yield annotation, ""
    elif get_origin(annotation) is dict:
        for inner, suffix in _inner(get_args(annotation)[1]):
            yield inner, f".NAME{suffix}"
    elif get_origin(annotation) is not Literal:
        for argument in get_args(annotation):
            yield from _inner(argument)


def _values(axis: type[AxisValue]) -> dict[str, type[AxisValue]]:
    """The values of an axis that a run file can name."""
    return {name: part for name, part in AXES[axis.axis].items() if name != GIVEN}


def _value(info: FieldInfo, homes: Mapping[type[BaseModel], str]) -> str:
    return ", ".join([_type(info.annotation, homes), *_bounds(info.metadata)])


def _type(annotation: Any, homes: Mapping[type[BaseModel], str]) -> str:
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type(arguments[0], homes)
    if isinstance(annotation, type) and issubclass(annotation, AxisValue):
        named = ", ".join(f"[`{n}`](#{_anchor(homes[part])})" for n, part in _values(annotation).items())
        return f"{named}, or your own `package.module:Name`"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        home = homes[annotation]
        return f"[{home or 'keys'}](#{_anchor(home)})"
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


def _anchor(heading: str) -> str:
    """The anchor of a heading, as the table of contents makes it."""
    return heading.replace(".", "").replace(":", "").replace(" ", "-").lower() or "keys"


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
    if info.default is PydanticUndefined and info.default_factory is None:
        return "required"
    if isinstance(info.default, AxisValue):
        return f"`{info.default.type}`"
    if isinstance(info.default, BaseModel) or info.default_factory:
        return "its defaults"
    if info.default is None:
        return "–"
    if info.default == "":
        return "empty"
    return f"`{info.default}`" if isinstance(info.default, str) else f"`{json.dumps(info.default)}`"
