"""The commands, read from the command line itself."""

from __future__ import annotations

from typing import Any

import typer.main

from opd.cli import app
from opd_docs.tables import table


def commands() -> str:
    """A section a command: how it is called, what it does, its arguments and options."""
    root: Any = typer.main.get_command(app)
    return "\n\n".join(_section(name, command) for name, command in sorted(root.commands.items()))


def _section(name: str, command: Any) -> str:
    context = command.make_context("opd " + name, [], resilient_parsing=True)
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    rows = [
        [f"`{_written(p, context)}`", p.help or "", _default(p)] for p in command.params if not getattr(p, "hidden", False)
    ]
    parts = [f"## opd {name}", command.help or "", f"```text\n{usage}\n```"]
    return "\n\n".join([*parts, table(["argument or option", "meaning", "default"], rows)])


def _written(parameter: Any, context: Any) -> str:
    metavar = parameter.make_metavar(context)
    if parameter.param_type_name == "argument":
        return metavar
    return parameter.opts[0] if parameter.is_flag else f"{parameter.opts[0]} {metavar}"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    return "–" if parameter.default in (None, False, "") else f"`{parameter.default}`"
