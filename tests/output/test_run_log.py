"""The run's log: trackers that are missing, trackers that are resumed, and the lines of metrics.jsonl."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import opd
from opd.output.callbacks import RunStart
from opd.output.run_log import RunLog, open_sinks, rewind
from support.models import make_model

PROMPTS = [{"prompt": f"{a} {b}"} for a in "abcd" for b in "efgh"]


def run_file(out: Path, log: list[str], steps: int = 2) -> dict[str, Any]:
    return {
        "student": "s",
        "prompts": {"path": "p.jsonl"},
        "teacher": {"model": "t"},
        "rollout": {"prompts_per_step": 4, "max_new_tokens": 4},
        "optimizer": {"steps": steps},
        "log": log,
        "out": str(out),
    }


class Tracker(ModuleType):
    """A package with the calls of wandb and trackio."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.error = error
        self.inits: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **settings: Any) -> None:
        if self.error:
            raise self.error
        self.inits.append(settings)

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))

    def finish(self) -> None:
        self.finished += 1


def events(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["event"] for row in rows if "event" in row]


def train(out: Path, log: list[str], **more: Any) -> opd.Result:
    return opd.train(run_file(out, log), student=make_model(0), teacher=make_model(1), prompts=PROMPTS, **more)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_one_warning_with_the_remedy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opd.output.run_log.find_spec", lambda package: None)
    result = train(tmp_path / "run", [name])
    assert result.steps == 2
    text = f"log: {name} is not installed, so it records nothing. Fix: pip install {name}"
    assert events(tmp_path / "run") == [{"kind": "tracker", "text": text}]


def test_a_tracker_that_cannot_start_is_one_warning_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Tracker("wandb", RuntimeError("api_key not configured")))
    result = train(tmp_path / "run", ["wandb"])
    assert result.steps == 2
    (event,) = events(tmp_path / "run")
    assert event["text"].startswith("log: wandb could not be started (api_key not configured)")


def test_a_resumed_run_continues_the_same_run_of_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker("wandb")
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    train(tmp_path / "run", ["wandb"])
    train(tmp_path / "run", ["wandb"], resume=True)
    train(tmp_path / "other", ["wandb"])
    first, again, other = tracker.inits
    assert first["id"] == again["id"] == json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    assert other["id"] != first["id"]
    assert {first["resume"], again["resume"]} == {"allow"}
    assert (first["project"], first["name"]) == ("opd", "run")
    assert first["config"]["optimizer"]["steps"] == 2
    assert tracker.finished == 3
    assert [step for step, _ in tracker.rows] == [1, 2, 1, 2]
    assert "train/loss" in tracker.rows[0][1]


def test_trackio_knows_a_run_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker("trackio")
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    sinks, warnings = open_sinks(["trackio"], tmp_path / "run", {"seed": 1}, project="mine")
    assert (len(sinks), warnings) == (1, [])
    assert tracker.inits == [{"project": "mine", "name": "run", "config": {"seed": 1}, "resume": "allow"}]


def test_a_line_with_any_unicode_line_separator_survives_a_rewind(tmp_path: Path) -> None:
    rows = [{"step": step, "text": "a\u2028b\u2029c\u0085d"} for step in (1, 2, 3)]
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    rewind(path, 2)
    assert [json.loads(line) for line in path.read_text().split("\n") if line] == rows[:2]


def test_the_log_drops_the_lines_after_the_step_that_a_run_resumes_from(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = RunLog(path)
    for step in (0, 1, 2, 3):
        log.step(step, {"loss": 1.0})
    log.start(RunStart(tmp_path, step=2, steps=9, evaluates=False), evaluated=False)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2]
    log.start(RunStart(tmp_path, step=0, steps=9, evaluates=True), evaluated=True)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0]
    log.start(RunStart(tmp_path, step=0, steps=9, evaluates=True), evaluated=False)
    assert path.read_text() == ""


def test_a_resume_drops_the_events_of_the_update_that_is_made_again(tmp_path: Path) -> None:
    """An event of the update after step 2 has the number 2 too, and would stand there twice."""
    path = tmp_path / "metrics.jsonl"
    known = {"step": 2, "kind": "idle", "text": "of the second update"}
    lines: list[dict[str, Any]] = [
        {"step": 2, "train": {"loss": 1.0}},
        {"step": 2, "event": {"kind": "idle", "text": "of the second update"}},
        {"step": 2, "event": {"kind": "provenance", "text": "torch was 1 and is 2"}},
        {"step": 2, "event": {"kind": "idle", "text": "of the third update"}},
        {"step": 3, "train": {"loss": 1.0}},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    RunLog(path).start(RunStart(tmp_path, step=2, steps=5, evaluates=False), evaluated=True, events=[known])
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:3]
    rewind(path, 2)
    assert len(path.read_text().splitlines()) == 3
