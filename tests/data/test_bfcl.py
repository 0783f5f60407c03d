"""The tool environment on real tasks: the Berkeley function-call leaderboard's, with their possible answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from typing import Any

import pytest

from opd.data.tool_task import ToolTask
from opd.types import Prompt
from support.tokenizers import SHARED_DATA

BFCL = SHARED_DATA / "bfcl"
TASK = ToolTask(None)

WRONG = {"parallel_multiple_21", "parallel_multiple_26", "parallel_multiple_94", "live_simple_71-35-0"}
"""Tasks whose possible answers do not fit the schemas of their own tools."""

FORMS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "hermes": lambda calls: "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls),
    "llama": lambda calls: (
        "<|python_tag|>"
        + "; ".join(json.dumps({"name": call["name"], "parameters": call["arguments"]}) for call in calls)
    ),
    "mistral": lambda calls: f"[TOOL_CALLS] {json.dumps(calls)}",
    "bare": lambda calls: f"```json\n{json.dumps(calls, indent=2)}\n```",
}


def tasks(name: str) -> Iterator[tuple[Prompt, list[dict[str, Any]]]]:
    """Each task as a prompt, with calls made of the first possible value of each argument."""
    if not BFCL.exists():
        pytest.skip("needs the shared data beside the checkout")
    rows = map(json.loads, (BFCL / f"BFCL_v4_{name}.json").read_text().splitlines())
    answers = map(json.loads, (BFCL / "possible_answer" / f"BFCL_v4_{name}.json").read_text().splitlines())
    possible = {row["id"]: row["ground_truth"] for row in answers}
    for row in rows:
        tools, expected = tuple(row["function"]), possible[row["id"]]
        data = {"calls": expected}
        prompt = TASK.prepared(
            Prompt(id=row["id"], messages=tuple(row["question"][0]), tools=tools, data=data), key="p"
        )
        required = {tool["name"]: tool["parameters"].get("required", []) for tool in tools}
        yield prompt, [first(call, required) for call in expected]


def first(call: Mapping[str, Any], required: Mapping[str, Any]) -> dict[str, Any]:
    ((name, allowed),) = call.items()
    chosen = {key: next((v for v in values if v != ""), "") for key, values in allowed.items() if values}
    chosen |= {key: [] for key, values in allowed.items() if not values}
    kept = {key: v for key, v in chosen.items() if key in required[name] or allowed[key][:1] != [""]}
    return {"name": name, "arguments": {key: value(v) for key, v in kept.items() if v != ""}}


def value(possible: Any) -> Any:
    """A value whose mappings hold lists of possible values, with the first of each."""
    if isinstance(possible, dict):
        return {key: value(values[0]) for key, values in possible.items() if values and values[0] != ""}
    return [value(one) for one in possible] if isinstance(possible, list) else possible


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simple_python", "multiple", "parallel", "parallel_multiple", "live_simple"])
def test_possible_answers_are_accepted_and_others_refused(name: str) -> None:
    """In the four forms by turns."""
    number = 0
    for (prompt, calls), write in zip(tasks(name), cycle(FORMS.values()), strict=False):
        number += len(calls)

        def reward(calls: list[dict[str, Any]], prompt: Prompt = prompt, write: Any = write) -> float:
            seen = TASK.step(prompt, [{"role": "assistant", "content": write(calls)}])
            return 0.0 if seen.events else float(seen.correct or False)

        assert (reward(calls) == 1.0) == (prompt.id not in WRONG), prompt.id
        renamed = [{**calls[0], "name": "nothing"}, *calls[1:]]
        added = [{**calls[0], "arguments": {**calls[0]["arguments"], "zzz": 1}}, *calls[1:]]
        assert reward(renamed) == reward(added) == reward([*calls, calls[0]]) == 0.0, prompt.id
        assert len(calls) == 1 or reward(calls[1:]) == 0.0
        assert reward(calls[::-1]) == reward(calls)
        for key, given in calls[0]["arguments"].items():
            other = [given] if not isinstance(given, list) else "no list"
            changed = [{**calls[0], "arguments": {**calls[0]["arguments"], key: other}}, *calls[1:]]
            assert reward(changed) == 0.0, (prompt.id, key)
    assert number >= 200


def test_an_irrelevant_tool_is_not_to_be_called() -> None:
    if not BFCL.exists():
        pytest.skip("needs the shared data beside the checkout")
    for row in map(json.loads, (BFCL / "BFCL_v4_irrelevance.json").read_text().splitlines()):
        tools, messages = tuple(row["function"]), tuple(row["question"][0])
        if not tools:
            continue
        prompt = TASK.prepared(Prompt(id=row["id"], messages=messages, tools=tools, data={"calls": []}), key="p")
        said = TASK.step(prompt, [{"role": "assistant", "content": "None of my tools can do that."}])
        assert (said.correct, said.events) == (True, ())
