"""Warnings on the page of a run."""

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
    lines = [{"step": n, "train": metrics} for n, metrics in enumerate(steps)]
    return [(s["kind"], s["alarm"]) for s in signs({"rollout": {"prompts_per_step": 64}, **config}, lines, [])]


def test_a_healthy_run_and_an_empty_run_have_no_warnings(hint_run: Path) -> None:
    assert run_data(hint_run)["signs"] == []
    assert kinds([]) == []
    assert kinds([HEALTHY] * 10) == []


def test_a_mask_shifted_by_one_is_one_error_with_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Sampler.rollout

    def shifted(self: Sampler, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Rollout]:
        made = right(self, prompts, seed, step)
        return [replace(r, completion_mask=(False, *r.completion_mask[:-1])) for r in made]

    monkeypatch.setattr(Sampler, "rollout", shifted)
    small = {"eval.every": 1, "eval.prompts.limit": 8, "eval.diagnostics": 0, "rollout.prompts_per_step": 8, "log": []}
    opd.train("hint", {**small, "optimizer.steps": 1, "out": str(tmp_path / "run")})
    data = run_data(tmp_path / "run")
    (sign,) = data["signs"]
    assert (sign["kind"], sign["alarm"]) == ("shifted", True)
    # A mask shifted to the right includes the first token of every environment message.
    turns = sum(len(r["turns"]) for r in data["rollouts"])
    messages = turns - len(data["rollouts"])
    late = "The completion mask stands one token late: the first token of a turn is left out of the loss"
    assert sign["text"].startswith(f"{late} ({turns} times: ")
    assert f"is in the loss ({messages} times: “<|im_start|>”)" in sign["text"]
    step, of, n, position = sign["at"]
    rollout = next(r for r in data["rollouts"] if (r["step"], r["of"], r["n"]) == (step, of, n))
    assert rollout["text"][position] == "<|im_start|>"


def masked(own: Sequence[int], missed: Sequence[int]) -> list[tuple[str, str]]:
    """Kinds and texts for one rollout of ten tokens with turns 1–3 and 6–8."""
    turns, text = [[1, 4], [6, 9]], [f"t{n}" for n in range(10)]
    row = {"step": 0, "of": "eval", "n": 0, "turns": turns, "text": text, "terms": [], "own": own, "missed": missed}
    return [(s["kind"], s["text"]) for s in signs({}, [], [row])]


def test_the_direction_of_a_shift_is_named_and_other_masks_are_two_errors() -> None:
    assert masked([1, 2, 3, 6, 7, 8], []) == []
    ((kind, late),) = masked([2, 3, 4, 7, 8, 9], [1, 6])
    assert (kind, "one token late: the first token of a turn" in late) == ("shifted", True)
    ((kind, early),) = masked([0, 1, 2, 5, 6, 7], [3, 8])
    assert kind == "shifted"
    assert early == (
        "The completion mask stands one token early: the last token of a turn is left out of the loss (2 times: “t3”, "
        "“t8”), and the token before a turn, which the student did not generate, is in the loss (2 times: “t0”, “t5”), "
        "in 1 of 1 recorded rollouts."
    )
    assert [kind for kind, _ in masked([2, 3, 5, 6, 7, 8], [1])] == ["inserted", "missed"]
    assert [kind for kind, _ in masked([2, 3, 6, 7, 8], [1])] == ["missed"]


def test_an_inserted_token_outside_the_loss_is_no_warning(tmp_path: Path) -> None:
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


def test_symptoms_have_the_thresholds_of_the_guards(tmp_path: Path) -> None:
    flat = {**HEALTHY, "entropy": 0.05}
    assert kinds([*[HEALTHY] * 5, *[{**flat, "accuracy": 0.1}] * 5]) == [("entropy_collapsed", True)]
    assert kinds([*[HEALTHY] * 5, *[flat] * 5]) == [("entropy_collapsed", False)]
    assert kinds([*[HEALTHY] * 5, *[{**flat, "accuracy": 0.95}] * 5]) == []
    thresholds = {"guards": {"recover": {"thresholds": {"entropy_collapsed": 0.01}}}}
    assert kinds([*[HEALTHY] * 5, *[flat] * 5], **thresholds) == []
    same = {**HEALTHY, "repetition_rate": 0.5, "accuracy": 0.0}
    assert kinds([*[HEALTHY] * 5, *[same] * 5]) == [("repeating", True)]
    # A student that equals its teacher has a KL of 0.
    assert kinds([*[HEALTHY] * 5, *[{**HEALTHY, "distill": 0.001, "accuracy": 0.9}] * 5]) == []


def test_a_teacher_no_better_than_its_student_is_reported() -> None:
    def texts(metrics: dict[str, float]) -> list[str]:
        return [s["text"] for s in signs({}, [{"step": 0, "eval": metrics}], []) if s["kind"] == "teacher"]

    assert texts({"accuracy": 0.5, "teacher_accuracy": 0.9}) == []
    assert texts({"accuracy": 1.0, "teacher_accuracy": 1.0}) == []
    (text,) = texts({"accuracy": 0.5, "teacher_accuracy": 0.4})
    assert text == "The teacher was no better than the student on held-out prompts: accuracy 40.0%, student 50.0%."
    several = {"accuracy": 0.5, "accuracy/math": 0.7, "accuracy/tools": 0.3}
    found = texts(
        {**several, "teacher_accuracy/math/a": 0.6, "teacher_accuracy/math/b": 0.8, "teacher_accuracy/tools": 0.9}
    )
    assert found == [
        "The teacher a was no better than the student on held-out prompts of math: accuracy 60.0%, student 70.0%."
    ]


def worse_teacher(*evals: dict[str, float], steps: Sequence[dict[str, float]] = (), stopped: bool = False) -> list[str]:
    lines: list[dict[str, object]] = [{"step": n, "eval": metrics} for n, metrics in enumerate(evals)]
    lines += [{"step": n, "train": metrics} for n, metrics in enumerate(steps)]
    lines += [{"step": 9, "event": {"kind": "collapse", "text": "stopped"}}] * stopped
    return [s["text"] for s in signs({"rollout": {"prompts_per_step": 64}}, lines, [])]


def test_a_student_that_became_like_a_worse_teacher_is_one_error_that_names_the_cause_first() -> None:
    start = {"accuracy": 0.531, "teacher_accuracy": 0.188, "teacher/reverse_kl": 1.4}
    end = {"accuracy": 0.156, "teacher/reverse_kl": 0.05}
    cause = (
        "The teacher is worse than the student was (accuracy 18.8% against 53.1% on held-out prompts), and the student "
        "became like it: its accuracy on held-out prompts fell to 15.6%."
    )
    assert worse_teacher(start, end) == [cause]
    harm = [*[HEALTHY] * 5, *[{**HEALTHY, "distill": 0.001, "accuracy": 0.1}] * 5]
    assert worse_teacher(start, end, steps=harm) == [
        f"{cause} The training rollouts show a collapse: accuracy from 50.0% at its best to 10.0%, KL to the teacher "
        "from 0.4000 to 0.0010."
    ]
    # A fall that stays nearer to the start counts only if a guard or the rollouts show a collapse.
    partly = {"accuracy": 0.45, "teacher/reverse_kl": 0.3}
    weak = "The teacher was no better than the student on held-out prompts: accuracy 18.8%, student 53.1%."
    assert worse_teacher(start, partly) == [weak]
    assert worse_teacher(start, partly, stopped=True)[0].startswith("The teacher is worse than the student was")
    # The teacher is no cause if the student moved away from it.
    away = {"accuracy": 0.0, "teacher/reverse_kl": 3.0}
    assert worse_teacher(start, away, stopped=True) == [weak]
