"""``examples/tools``: its data, its run files, and one update of each with a small random model."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import opd
from opd.config.read import read
from opd.config.run import RunConfig
from opd.data.prompts import load_prompts
from opd.data.tool_prompts import fit_to_template
from opd.models.chat import Chat
from opd.models.language import LanguageModel
from opd.rollouts.references import ReferenceAnswers
from support.chat_templates import make_chat_tokenizer
from support.models import make_model
from support.plays import Plays

ROOT = Path(__file__).parents[2]
WRONG = '<tool_call>{"name": "calculator", "arguments": {"a": 1, "b": 2}}</tool_call>'
SMALL: dict[str, Any] = {
    "optimizer.steps": 1,
    "rollout.prompts_per_step": 2,
    "rollout.max_new_tokens": 400,
    "log": [],
}


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the root of a clone for the example, with its data written."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT / "examples/tools"))
    runpy.run_path("examples/tools/make_data.py")["main"](Path("runs/tools"))
    return tmp_path


@pytest.fixture
def student() -> LanguageModel:
    return make_model(tokenizer=make_chat_tokenizer("chatml"), positions=4096)


def config(name: str) -> RunConfig:
    found = read(f"examples/tools/{name}.yaml", {})
    assert isinstance(found, RunConfig)
    return found


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"runs/tools/{name}.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_traces_are_right_and_no_file_shares_a_name_with_another(beside: Path, student: LanguageModel) -> None:
    prompts, task = load_prompts(config("sft").prompts, key="prompts", has_template=True)
    chat = Chat(student.tokenizer)
    fitted = fit_to_template(prompts, chat, lambda _: None)
    rollouts = ReferenceAnswers(chat, task, max_length=None).rollout(fitted, 0)
    assert [r.correct for r in rollouts] == [True] * 192
    assert not any(r.events for r in rollouts)
    names = [{tool["name"] for row in rows(file) for tool in row["tools"]} for file in ("traces", "tasks", "held_out")]
    assert sum(map(len, names)) == len(set.union(*names)) > 250
    assert {len(row["tools"]) for row in rows("held_out")} == {3}


@pytest.mark.slow
def test_both_run_files_train(beside: Path, student: LanguageModel) -> None:
    student.model.save_pretrained("small")
    student.tokenizer.save_pretrained("small")
    opd.train("examples/tools/sft.yaml", {**SMALL, "student": "small"})
    assert config("hint").student == config("sft").out
    held_out = {"eval.prompts.limit": 2, "eval.max_new_tokens": 400, "report.prompts": 2}
    engine = Plays(Chat(student.tokenizer), WRONG, "It is 3.")
    result = opd.train("examples/tools/hint.yaml", {**SMALL, **held_out}, engine=engine)
    assert result.before["invalid_call_rate"] == 1.0
    stories = list(runpy.run_path("examples/smollm2/show.py")["stories"](Path("runs/tools/hint")))
    printed = "\n".join(line for story in stories for line in story.lines())
    assert printed.count(f"before: {WRONG}") == 2
    assert "\nhint:   Reminder: available tools: " in printed
    assert len(re.findall(r"\n(?:P\(\w+\):|       ) 0\.\d{3} (?:before|after)", printed)) == 6
