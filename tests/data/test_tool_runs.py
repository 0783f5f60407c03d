"""Whole runs with prompts.tools: from a JSONL file and a list of functions to hints and a loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import opd
from opd.api import examine
from opd.config.read import read
from opd.errors import ConfigError, DataError
from opd.models.chat import Chat
from opd.models.language import LanguageModel
from support.chat_templates import make_chat_tokenizer
from support.models import make_model
from support.plays import Plays

FIVE = "support.five_tools:FUNCTIONS"
WRONG = '<tool_call>{"name": "multiply", "arguments": {"a": 1, "b": 2}}</tool_call>'
RIGHT = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'


@pytest.fixture
def student() -> LanguageModel:
    return make_model(tokenizer=make_chat_tokenizer("chatml"), positions=4096)


def run_file(folder: Path, *rows: dict[str, Any], **keys: Any) -> dict[str, Any]:
    file = folder / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "prompts": {"path": str(file), "tools": FIVE},
        "eval.prompts": None,
        "rollout.prompts_per_step": 2,
        "rollout.max_new_tokens": 400,
        "optimizer.steps": 1,
        "log": [],
        "report": False,
        "out": str(folder / "out"),
        **keys,
    }


ROW = {"prompt": "What is 1 + 2?", "calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}]}


@pytest.mark.parametrize(("span", "trained"), [("turn", len(WRONG) + 1), ("fault", len("multiply")), ("token", 1)])
def test_a_wrong_call_gets_a_hint_and_a_loss(student: LanguageModel, tmp_path: Path, span: str, trained: int) -> None:
    chat = Chat(student.tokenizer)
    engine = Plays(chat, WRONG, RIGHT, "It is 3.")
    author = {"type": "rules", "span": span}
    keys = run_file(tmp_path, ROW, {**ROW, "prompt": "1 + 2"}, **{"teacher.view.author": author})
    opd.train("hint", keys, student=student, engine=engine)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    train = next(line["train"] for line in lines if "train" in line)
    notes = [line["event"]["text"] for line in lines if "event" in line]
    assert "tools are described in the system message, and their results have the role tool" in notes
    assert train["accuracy"] == 1.0
    assert train["invalid_call_rate"] == 0.5
    assert train["hints/written"] == 2
    assert train["distill"] > 0
    tokens = sum(map(len, engine.turns))
    assert train["distill_share"] == pytest.approx(trained / tokens)
    asked = chat.decode(engine.contexts[2], skip_special_tokens=False)
    assert "error: no such tool: multiply" in asked
    assert asked.endswith("<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n")


def test_a_models_own_template_describes_the_tools_and_eval_takes_them_too(tmp_path: Path) -> None:
    tokenizer = make_chat_tokenizer("qwen 3")
    student = make_model(tokenizer=tokenizer, positions=4096)
    file = tmp_path / "tasks.jsonl"
    file.write_text(json.dumps(ROW) + "\n")
    notes: list[str] = []
    metrics = opd.evaluate(
        replace(student), str(file), settings={"tools": FIVE}, max_new_tokens=4, max_turns=1, note=notes.append
    )
    assert metrics["accuracy"] == 0.0
    assert notes[-1:] == ["tools are described by the chat template, and their results have the role tool"]


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"prompts.tools": FIVE}, r"prompts: tools does not apply to a task"),
        (
            {"prompts": {"path": "x.jsonl", "tools": {"timeout": 0}}},
            r"'prompts.tools.timeout' is 0: input should be greater than 0",
        ),
        (
            {"prompts": {"path": "x.jsonl", "tools": {"functoins": FIVE}}},
            r"unknown key 'prompts.tools.functoins'; did you mean",
        ),
        (
            {"prompts": {"mix": [{"path": "x.jsonl"}], "tools": FIVE}},
            r"prompts: tools does not apply to a mix",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read("hint", keys)


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prompt '1' has no messages, and tools need a chat. Fix: use a model with a"):
        list(examine("hint", {**run_file(tmp_path, ROW), "student": "nano/math-base", "prompts.chat": False}))
