"""Tools as JSON schemas: reading them, and checking the arguments of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator, SchemaError, ValidationError

from opd.data.tool_calls import Call, Place, place_of

_TYPES = {"dict": "object", "float": "number", "double": "number", "tuple": "array", "list": "array", "bool": "boolean"}
"""Names of types in schemas that were made from Python, as in BFCL; ``any`` allows everything."""

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
        parameters = standard(function.get("parameters") or {"type": "object", "properties": {}})
        try:
            Draft202012Validator.check_schema(parameters)
        except SchemaError as error:
            raise ValueError(
                f"the parameters of tool '{function['name']}' are no JSON schema ({error.message}). Fix: correct them"
            ) from None
        return cls(function["name"], {**function, "parameters": parameters})

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
        return Draft202012Validator({"additionalProperties": False, **self.schema["parameters"]})

    def faults(self, call: Call, text: str) -> list[ArgumentFault]:
        """What is wrong with a call's arguments, in the order of the text."""
        errors = self._validator.iter_errors(dict(call.arguments))
        return sorted((f for e in errors for f in _faults(e, call, text)), key=lambda fault: fault.place)


def standard(schema: Any) -> Any:
    """A JSON schema whose types have their standard names; an unknown name of a type is left to the check."""
    if isinstance(schema, Sequence) and not isinstance(schema, str):
        return [standard(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    read: dict[str, Callable[[Any], Any]] = {"type": _standard_type}
    read |= dict.fromkeys(("properties", "$defs", "patternProperties"), _each)
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
        yield ArgumentFault(f"{call.name} needs {missing}", (place[1] - 1, place[1]))
    else:
        where = ".".join(map(str, path)) or call.name
        message = error.message if len(error.message) <= ERROR_CHARACTERS else error.message[:ERROR_CHARACTERS] + "…"
        yield ArgumentFault(f"{where}: {message}", place)
