"""Tools as JSON schemas: reading them, and checking the arguments of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from opd.data.tool_calls import Call, Place, place_of

_TYPES = {"dict": "object", "float": "number", "double": "number", "tuple": "array", "list": "array", "bool": "boolean"}
"""Names of types in schemas that were made from Python, as in BFCL; ``any`` allows everything."""

_COMBINES = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas"})
"""Keywords that bring arguments beside ``properties``."""

_OTHER_NAMES = ("input_schema", "inputSchema")
"""Names of ``parameters`` in Anthropic's API and in MCP."""

ERROR_CHARACTERS = 200
"""Length at which an error is cut, since a validator quotes the whole value."""


class ArgumentFault(NamedTuple):
    """A fault in a call's arguments, and where it stands in the turn's text."""

    error: str
    place: Place


@dataclass(frozen=True)
class Tool:
    """A tool that the student may call.

    Attributes:
        name: of the tool.
        schema: the function's JSON schema with its standard types.
    """

    name: str
    schema: Mapping[str, Any]

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Tool:
        """The tool of a schema, with or without ``{"type": "function", "function": …}`` around it.

        Raises:
            ValueError: it has no name, or its parameters are no JSON schema; the sentence has no key.
        """
        function = given.get("function", given)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(f"a tool has no name ({given!r}). Fix: write {{'name': …, 'parameters': …}}")
        given = next((function[key] for key in ("parameters", *_OTHER_NAMES) if function.get(key)), {})
        parameters = standard(given or {"type": "object", "properties": {}})
        _check(parameters, function["name"])
        rest = {key: value for key, value in function.items() if key not in _OTHER_NAMES}
        return cls(function["name"], {**rest, "parameters": parameters})

    @property
    def for_template(self) -> dict[str, Any]:
        """The form that chat templates take."""
        return {"type": "function", "function": dict(self.schema)}

    @property
    def signature(self) -> str:
        """The tool in one line, such as ``add(a: integer, b: integer, note?: string)``."""
        parameters = self.schema["parameters"]
        required = parameters.get("required", ())
        listed = (
            f"{name}{'' if name in required else '?'}: {_type(schema)}"
            for name, schema in parameters.get("properties", {}).items()
        )
        return f"{self.name}({', '.join(listed)})"

    @cached_property
    def _validator(self) -> Draft202012Validator:
        parameters = _nullable(self.schema["parameters"])
        others = "unevaluatedProperties" if _COMBINES & parameters.keys() else "additionalProperties"
        return Draft202012Validator({others: False, **parameters}, registry=Registry())

    def faults(self, call: Call, text: str) -> list[ArgumentFault]:
        """What is wrong with a call's arguments, in the order of the text."""
        errors = self._validator.iter_errors(dict(call.arguments))
        return sorted((f for e in errors for f in _faults(e, call, text)), key=lambda fault: fault.place)


def _check(parameters: Any, name: str) -> None:
    """Refuse what no call could be held against.

    Raises:
        ValueError: it is no JSON schema of an object.
    """
    fix = "Fix: write {'type': 'object', 'properties': {…}}"
    try:
        Draft202012Validator.check_schema(parameters)
    except SchemaError as error:
        where = ".".join(map(str, error.absolute_path)) or "parameters"
        raise ValueError(
            f"the parameters of tool '{name}' are no JSON schema ({where}: {error.message}). Fix: correct them"
        ) from None
    if not isinstance(parameters, Mapping) or not parameters.keys() & {"type", "properties", *_COMBINES}:
        raise ValueError(f"the parameters of tool '{name}' have no 'properties' ({parameters!r}). {fix}")
    resolver = Registry().with_resource("", DRAFT202012.create_resource(parameters)).resolver()
    for target in _references(parameters):
        try:
            resolver.lookup(target)
        except Unresolvable:
            raise ValueError(
                f"the parameters of tool '{name}' have a $ref to {target!r}, which is not among them. Fix: write it "
                "into their $defs"
            ) from None


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if isinstance(target := schema.get("$ref"), str):
            yield target
        schema = list(schema.values())
    if isinstance(schema, list):
        for inner in schema:
            yield from _references(inner)


def _nullable(schema: Any) -> Any:
    """A schema in which OpenAPI's ``nullable`` is what JSON schema has for it."""
    if isinstance(schema, list):
        return [_nullable(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {name: _nullable(value) for name, value in schema.items()}
    if found.get("nullable") is True:
        if isinstance(kind := found.get("type"), str | list):
            found["type"] = [*([kind] if isinstance(kind, str) else kind), "null"]
        if isinstance(found.get("enum"), list):
            found["enum"] = [*found["enum"], None]
    return found


def standard(schema: Any) -> Any:
    """A JSON schema whose types have their standard names; an unknown name of a type is left to the check."""
    if isinstance(schema, Sequence) and not isinstance(schema, str):
        return [standard(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    read: dict[str, Callable[[Any], Any]] = {"type": _standard_type}
    read |= dict.fromkeys(("properties", "$defs", "definitions", "patternProperties"), _each)
    read |= dict.fromkeys(("items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf", "not"), standard)
    found = {name: read.get(name, lambda value: value)(value) for name, value in schema.items()}
    if found.get("type") == "any":
        del found["type"]
    if not isinstance(found.get("required", []), list):
        del found["required"]  # some schemas mark a single property so
    return found


def _standard_type(name: Any) -> Any:
    return [_TYPES.get(one, one) for one in name] if isinstance(name, list) else _TYPES.get(name, name)


def _each(schemas: Any) -> Any:
    return {name: standard(schema) for name, schema in schemas.items()} if isinstance(schemas, Mapping) else schemas


def _type(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return "any"
    if "enum" in schema:
        return " | ".join(map(repr, schema["enum"]))
    name = schema.get("type", "any")
    if name == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return " | ".join(name) if isinstance(name, list) else str(name)


def _faults(error: ValidationError, call: Call, text: str) -> Iterator[ArgumentFault]:
    path = list(error.absolute_path)
    place = place_of(text, call.arguments_place, path)
    if error.validator == "additionalProperties" and error.validator_value is False:
        schema: Any = error.schema
        given: Any = error.instance
        for name in given.keys() - schema.get("properties", {}).keys():
            at = place_of(text, call.arguments_place, [*path, name], key=True)
            yield ArgumentFault(f"{call.name} has no argument '{'.'.join(map(str, [*path, name]))}'", at)
    elif error.validator == "required":
        missing = error.message.partition(" is a required")[0]
        yield ArgumentFault(f"{'.'.join(map(str, path)) or call.name} needs {missing}", (place[1] - 1, place[1]))
    else:
        where = ".".join(map(str, path)) or call.name
        message = error.message if len(error.message) <= ERROR_CHARACTERS else error.message[:ERROR_CHARACTERS] + "…"
        yield ArgumentFault(f"{where}: {message}", place)
