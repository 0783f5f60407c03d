"""Write traces for sft, tasks and held-out prompts into a folder: python examples/smollm2/make_data.py FOLDER."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from functions import FUNCTIONS, WRITTEN, Function

from opd.data.tool_schemas import Tool
from opd.teachers.hints import TEMPLATES

TOOLS = 3
"""Tools in the list of a row."""

REMINDED = 3
"""Of four traces, how many have a reminder."""


TRAINED = [f for f in FUNCTIONS if not f.held_out]

KINDS: Mapping[str, tuple[int, Sequence[Function]]] = {
    "traces": (256, TRAINED),
    "tasks": (800, TRAINED),
    "new_names": (40, TRAINED),
    "new_tools": (40, [f for f in FUNCTIONS if f.usual in WRITTEN["held_out"]["tools"]]),
    "new_domains": (40, [f for f in FUNCTIONS if f.domain in WRITTEN["held_out"]["domains"]]),
}
"""By kind of row, how many there are and the functions in them."""


def row(function: Function, others: Sequence[Function], rng: Random, *, usual: bool) -> tuple[dict[str, Any], str]:
    """A prompt with the tools that it may call, and the signature of the right one.

    Args:
        usual: all names are the usual ones; otherwise those of tools and arguments are drawn.
    """
    tools, names = [], {}
    for one in (function, *rng.sample([f for f in others if f is not function], TOOLS - 1)):
        name = one.usual if usual else one.drawn_name(rng)
        while name in {tool["name"] for tool in tools}:
            name = one.drawn_name(rng)
        arguments = [p.names[0] if usual else rng.choice(p.names) for p in one.parameters]
        properties = {n: {"type": p.type} for n, p in zip(arguments, one.parameters, strict=True)}
        parameters = {"type": "object", "properties": properties, "required": arguments}
        tools.append({"name": name, "description": one.says, "parameters": parameters})
        names[one.usual] = arguments
    values = [rng.choice(p.values) for p in function.parameters]
    fields = {p.names[0]: value for p, value in zip(function.parameters, values, strict=True)}
    question = rng.choice(function.asks).format(**fields)
    call = {"name": tools[0]["name"], "arguments": dict(zip(names[function.usual], values, strict=True))}
    signature = Tool.read(tools[0]).signature
    rng.shuffle(tools)
    return {"messages": [{"role": "user", "content": question}], "tools": tools, "calls": [call]}, signature


def rows(kind: str, *, seed: int = 0) -> list[dict[str, Any]]:
    """The rows of a kind, each with the turn to learn; most traces have a reminder below the question."""
    count, functions = KINDS[kind]
    rng = Random(f"{seed} {kind}")
    made = []
    for number in range(count):
        function = functions[number % len(functions)]
        reminded = kind == "traces" and number % 4 < REMINDED
        one, signature = row(function, functions, rng, usual=kind == "traces" and not reminded)
        if reminded:
            text = TEMPLATES["unknown_tool"].format(tools=signature)
            one["messages"].append({"role": "user", "content": text})
        made.append({**one, "turns": [f"<tool_call>{json.dumps(one['calls'][0])}</tool_call>"], "domain": kind})
    return made


def write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """A file of rows."""
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def main(folder: Path) -> None:
    """Write traces.jsonl, tasks.jsonl, and with three domains held_out.jsonl, for choosing settings, and test.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("traces", "tasks"):
        write(folder / f"{kind}.jsonl", rows(kind))
    for seed, name in enumerate(("held_out", "test")):
        lines = [line for kind in ("new_names", "new_tools", "new_domains") for line in rows(kind, seed=seed)]
        write(folder / f"{name}.jsonl", lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
