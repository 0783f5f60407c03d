"""What the page says looks wrong about a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import opd
from opd.report.data import run_data
from opd.report.signs import signs
from opd.rollouts.sampler import Sampler
from opd.types import Prompt, Rollout
from support.written_run import write_run

HEALTHY = {
    "accuracy": 0.5,
    "length": 20.0,
    "entropy": 1.0,
    "repetition_rate": 0.0,
    "distill": 0.4,
    "distill_share": 1.0,
}


def kinds(steps: Sequence[dict[str, float]], **config: object) -> list[tuple[str, bool]]:
    lines = [{"step": n, "train": figures} for n, figures in enumerate(steps)]
    return [(s["kind"], s["alarm"]) for s in signs({"rollout": {"batch": 64}, **config}, lines, [])]


def test_a_healthy_run_and_an_empty_one_show_nothing(hint_run: Path) -> None:
    assert run_data(hint_run)["signs"] == []
    assert kinds([]) == []
    assert kinds([HEALTHY] * 10) == []


def test_a_mask_that_is_off_by_one_is_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Sampler.rollout

    def shifted(self: Sampler, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Rollout]:
        made = right(self, prompts, seed, step)
        return [replace(r, completion_mask=(False, *r.completion_mask[:-1])) for r in made]

    monkeypatch.setattr(Sampler, "rollout", shifted)
    small = {"eval.every": 1, "eval.prompts.limit": 8, "eval.diagnostics": 0, "rollout.batch": 8, "log": []}
    opd.train("hint", {**small, "optimizer.steps": 1, "out": str(tmp_path / "run")})
    data = run_data(tmp_path / "run")
    inserted, missed = data["signs"]
    assert (inserted["kind"], missed["kind"]) == ("inserted", "missed")
    assert inserted["alarm"]
    # With a mask one to the right, every message of the environment gives its first token.
    messages = sum(len(r["turns"]) - 1 for r in data["rollouts"])
    assert inserted["text"].startswith(f"{messages} inserted tokens are in the loss")
    assert "<|im_start|>" in inserted["text"]
    turns = sum(len(r["turns"]) for r in data["rollouts"])
    assert missed["text"].startswith(f"{turns} of the student's own tokens are left out")
    step, of, n, position = inserted["at"]
    rollout = next(r for r in data["rollouts"] if (r["step"], r["of"], r["n"]) == (step, of, n))
    assert rollout["text"][position] == "<|im_start|>"


def test_an_inserted_token_without_weight_is_no_stranger(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    rows = [json.loads(line) for line in (path / "rollouts.jsonl").read_text().splitlines()]
    for row in rows:
        row["turns"] = [[0, max(row["terms"][0]["position"]) + 1]]
    (path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_data(path)["signs"] == []
    for row in rows:
        row["turns"] = [[0, max(row["terms"][0]["position"])]]
    (path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_data(path)["signs"][0]["text"].startswith(f"{len(rows)} inserted tokens are in the loss")


def test_symptoms_are_those_of_the_guards(tmp_path: Path) -> None:
    flat = {**HEALTHY, "entropy": 0.05}
    assert kinds([*[HEALTHY] * 5, *[{**flat, "accuracy": 0.1}] * 5]) == [("entropy_collapsed", True)]
    assert kinds([*[HEALTHY] * 5, *[flat] * 5]) == [("entropy_collapsed", False)]
    assert kinds([*[HEALTHY] * 5, *[{**flat, "accuracy": 0.95}] * 5]) == []
    thresholds = {"guards": {"recover": {"entropy_collapsed": 0.01}}}
    assert kinds([*[HEALTHY] * 5, *[flat] * 5], **thresholds) == []
    same = {**HEALTHY, "repetition_rate": 0.5, "accuracy": 0.0}
    assert kinds([*[HEALTHY] * 5, *[same] * 5]) == [("repeating", True)]
    # A student that has become its teacher has no KL left.
    assert kinds([*[HEALTHY] * 5, *[{**HEALTHY, "distill": 0.001, "accuracy": 0.9}] * 5]) == []


def test_a_teacher_that_is_no_better_than_its_student() -> None:
    def said(figures: dict[str, float]) -> list[str]:
        return [s["text"] for s in signs({}, [{"step": 0, "eval": figures}], []) if s["kind"] == "teacher"]

    assert said({"accuracy": 0.5, "teacher_accuracy": 0.9}) == []
    assert said({"accuracy": 1.0, "teacher_accuracy": 1.0}) == []
    (text,) = said({"accuracy": 0.5, "teacher_accuracy": 0.4})
    assert text == "The teacher was no better than the student on held-out prompts: 40.0% right, and the student 50.0%."
    several = {"accuracy": 0.5, "accuracy/math": 0.7, "accuracy/tools": 0.3}
    found = said(
        {**several, "teacher_accuracy/math/a": 0.6, "teacher_accuracy/math/b": 0.8, "teacher_accuracy/tools": 0.9}
    )
    assert found == [
        "The teacher a was no better than the student on held-out prompts of math: 60.0% right, and the student 70.0%."
    ]
