"""``examples/smollm2``: its data and its run files, and the page of ``benchmarks/real.py``."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from opd.config.read import read
from opd.data.prompts import load_prompts
from opd.data.tool_schemas import Tool
from opd.data.tool_task import ToolTask
from opd.types import Message

ROOT = Path(__file__).parents[2]
FOLDER = "runs/smollm2"


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example's data, in a folder like the root of a clone."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples/smollm2"))
    runpy.run_path("examples/smollm2/make_data.py")["main"](Path(FOLDER))
    return tmp_path / FOLDER


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(FOLDER, f"{name}.jsonl").read_text().splitlines()]


def test_every_call_is_right_and_no_name_repeats(written: Path) -> None:
    for name in ("traces", "tasks", "held_out"):
        config = read("examples/smollm2/hint.yaml", {"prompts.path": f"{FOLDER}/{name}.jsonl"}).prompts
        prompts, task = load_prompts(config, key="prompts", has_template=True)
        assert isinstance(task, ToolTask)
        for prompt, row in zip(prompts, rows(name), strict=True):
            answered: list[Message] = [*(prompt.messages or ()), {"role": "assistant", "content": row["turns"][0]}]
            assert task.step(prompt, answered).correct
    names = [{tool["name"] for row in rows(name) for tool in row["tools"]} for name in ("tasks", "held_out")]
    assert len(names[0]) > 1500
    assert len(names[1] - names[0]) > 0.5 * len(names[1])


def test_held_out_tools_and_domains_are_in_no_training_prompt(written: Path) -> None:
    said = {tool["description"] for name in ("traces", "tasks") for row in rows(name) for tool in row["tools"]}
    asked: dict[str, set[str]] = {row["domain"]: set() for row in rows("held_out")}
    for row in rows("held_out"):
        right = next(tool for tool in row["tools"] if tool["name"] == row["calls"][0]["name"])
        asked[row["domain"]].add(right["description"])
    assert asked.keys() == {"new_names", "new_tools", "new_domains"}
    assert asked["new_names"] <= said
    assert not (asked["new_tools"] | asked["new_domains"]) & said
    assert (len(asked["new_tools"]), len(asked["new_domains"])) == (4, 10)


def test_reminders_of_traces_name_the_right_tool_alone(written: Path) -> None:
    reminded = [row for row in rows("traces") if len(row["messages"]) == 2]
    assert len(reminded) == 192
    for row in reminded:
        right = next(tool for tool in row["tools"] if tool["name"] == row["calls"][0]["name"])
        assert row["messages"][1]["content"] == f"Reminder: available tools: {Tool.read(right).signature}."


def looked(accuracy: float, chat: float, seconds: float = 60.0) -> dict[str, Any]:
    before = {"accuracy": 0.2, "text_loss": 0.5}
    after = {"accuracy": accuracy, "text_loss": chat}
    return {"before": before, "after": after, "tokens": 9000, "scored": 500, "seconds": seconds}


def test_the_page_says_of_each_claim_whether_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import real

    measured = {
        "hint": [looked(0.6, 0.6), looked(0.7, 0.7), looked(0.8, 0.8)],
        "sft": [looked(0.9, 0.6), looked(0.95, 0.6), looked(0.99, 0.6)],
        "grpo": [looked(0.4, 0.6), looked(0.5, 0.6), looked(0.59, 0.6)],
        "opsd": [looked(0.2, 0.6)],
    }
    page = real.page({"tools": measured})
    assert "| hint | 70.0% (60.0%–80.0%) | 0.700 (0.600–0.800) | 9,000 | 500 | 60 | 3 |" in page
    said = {
        line.split(" | ")[0][2:]: line.split(" | ")[2].rstrip(" |")
        for line in page.splitlines()
        if line.startswith("| ") and "against" in line
    }
    assert said == {
        "a hint beats supervised training on the right call": "does **not** hold",
        "a hint beats GRPO": "holds",
        "a hint beats the whole answer in the prompt": "undecided: fewer than 3 seeds",
        "hints forget less than supervised training": "undecided",
    }


def test_every_arm_is_a_run_file(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import real

    for study in real.STUDIES.values():
        for arm in study.arms.values():
            assert read(arm.source, arm.overrides).optimizer.steps == real.UPDATES
