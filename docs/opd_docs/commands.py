"""The commands, generated from the command line."""

from __future__ import annotations

from typing import Any

import typer.main

from opd.cli import app
from opd_docs.tables import table

VALUES = {int: "NUMBER", float: "NUMBER"}
"""Placeholder of an option by the type of its default; any other is text."""


def commands() -> str:
    """One section per command: usage, description, arguments and options."""
    root: Any = typer.main.get_command(app)
    return "\n\n".join(_section(name, command) for name, command in sorted(root.commands.items()))


def _section(name: str, command: Any) -> str:
    context = command.make_context("opd " + name, [], resilient_parsing=True)
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    rows = [[f"`{_written(p, context)}`", p.help or "", _default(p)] for p in command.params if not p.hidden]
    parts = [f"## opd {name}", command.help or "", f"```text\n{usage}\n```"]
    return "\n\n".join([*parts, table(["argument or option", "meaning", "default"], rows)])


def _written(parameter: Any, context: Any) -> str:
    if parameter.param_type_name == "argument":
        return " ".join(parameter.get_usage_pieces(context))
    value = "" if parameter.is_flag else parameter.metavar or VALUES.get(type(parameter.default), "TEXT")
    return f"{parameter.opts[0]} {value}".strip()


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    return "–" if parameter.default is None or parameter.default is False else f"`{parameter.default}`"
