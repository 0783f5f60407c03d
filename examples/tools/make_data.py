"""Write traces.jsonl for sft, tasks.jsonl for hint and held_out.jsonl into a folder: python make_data.py FOLDER."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from my_tools import NAMES, add, celsius, count_letter, multiply, renamed
from transformers.utils import get_json_schema

from opd.data.tool_schemas import Tool
from opd.teachers.hints import TEMPLATES

SEED = 1
ROWS = {"traces": 192, "tasks": 400, "held_out": 40}
TOOLS = 3
"""Tools in the list of a row."""

WORDS = (
    "strawberry",
    "banana",
    "committee",
    "parallel",
    "mississippi",
    "bookkeeper",
    "elephant",
    "raspberry",
    "tomorrow",
)


def question(function: Callable[..., Any], rng: Random) -> tuple[str, dict[str, Any]]:
    """A question, and the arguments of the call that answers it."""
    if function is add:
        a, b = rng.randint(10, 999), rng.randint(10, 999)
        return f"What is {a} plus {b}?", {"a": a, "b": b}
    if function is multiply:
        a, b = rng.randint(3, 99), rng.randint(11, 99)
        return f"What is {a} times {b}?", {"a": a, "b": b}
    if function is celsius:
        degrees = rng.randint(0, 110)
        return f"How much is {degrees} degrees Fahrenheit in Celsius?", {"fahrenheit": degrees}
    if function is count_letter:
        word = rng.choice(WORDS)
        letter = rng.choice(sorted(set(word)))
        return f"How many letters {letter} are in the word {word}?", {"word": word, "letter": letter}
    year, month, day = rng.randint(1950, 2030), rng.randint(1, 12), rng.randint(1, 28)
    return f"What day of the week is {year}-{month}-{day}?", {"year": year, "month": month, "day": day}


def schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Its JSON schema, short: without the descriptions of arguments."""
    found: dict[str, Any] = get_json_schema(function)["function"]
    found.pop("return", None)
    for argument in found["parameters"]["properties"].values():
        del argument["description"]
    return found


def row(file: str, number: int, rng: Random) -> dict[str, Any]:
    """A prompt with three tools, whose names are drawn; a trace also has the turns to learn.

    Three of four traces have drawn names and a reminder of the right tool below the question, so that the student
    learns to follow a reminder. The fourth has the usual names, so that it may still overlook the list.
    """
    reminded = file == "traces" and number % 4 > 0
    kind = "reminded" if reminded else "usual" if file == "traces" else file
    right = list(NAMES)[number % len(NAMES)]
    listed = [right, *rng.sample([f for f in NAMES if f is not right], TOOLS - 1)]
    rng.shuffle(listed)
    tools = {f: renamed(f, rng.choice(NAMES[f][kind])) for f in listed}
    prompt, arguments = question(right, rng)
    messages = [{"role": "user", "content": prompt}]
    if reminded:
        signature = Tool.read(schema(tools[right])).signature
        messages.append({"role": "user", "content": TEMPLATES["unknown_tool"].format(tools=signature)})
    call = {"name": tools[right].__name__, "arguments": arguments}
    made = {"messages": messages, "tools": [schema(f) for f in tools.values()], "calls": [call]}
    turns = [f"<tool_call>{json.dumps(call)}</tool_call>", f"It is {right(**arguments)}."]
    return {**made, "turns": turns} if file == "traces" else made


def main(folder: Path) -> None:
    """Write the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, count in ROWS.items():
        rng = Random(f"{SEED} {file}")
        rows = [json.dumps(row(file, number, rng)) for number in range(count)]
        (folder / f"{file}.jsonl").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
