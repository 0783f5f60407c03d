"""The teacher gate: which teachers are excluded and admitted again, also after a resume."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import opd
from opd.errors import ConfigError
from opd.evaluation.teacher_gate import Gate
from opd.teachers.by_domain import TeachersByDomain

SHARES = {"math": {"good": 1.0, "bad": 1.0}, "tools": {"other": 2.0}}


class _Pool:
    """A gate sets shares and asks no model."""


def gate(**settings: object) -> Gate:
    teachers = TeachersByDomain(_Pool(), SHARES)  # type: ignore[arg-type]
    return Gate(teachers, SHARES, prompts={"math": 100, "tools": 100}, **settings)  # type: ignore[arg-type]


def metrics(
    good: float = 0.9, bad: float = 0.3, other: float = 0.8, math: float = 0.5, **more: float
) -> dict[str, float]:
    return {
        "accuracy/math": math,
        "accuracy/tools": 0.6,
        "teacher_accuracy/math/good": good,
        "teacher_accuracy/math/bad": bad,
        "teacher_accuracy/tools": other,
        **more,
    }


def test_a_teacher_that_is_no_better_is_excluded_with_the_values() -> None:
    judge = gate()
    refused, said = judge(metrics(), None)
    assert refused == ["math/bad"]
    assert said == ["bad does not teach math: its accuracy is 30.0%, the student's 50.0%"]
    assert judge.teachers.shares == {"math": {"good": 1.0}, "tools": {"other": 2.0}}
    assert judge(metrics(), refused) == (["math/bad"], [])


@pytest.mark.parametrize(("bad", "refused"), [(0.5, True), (0.55, True), (0.62, False)])
def test_the_margin(bad: float, refused: bool) -> None:
    assert ("math/bad" in gate(margin=0.1)(metrics(bad=bad), None)[0]) == refused


def test_a_teacher_with_little_overlap_is_excluded() -> None:
    far = {"teacher/overlap@16/math/good": 0.04, "teacher/overlap@16/math/bad": 0.5}
    refused, said = gate()(metrics(bad=0.7, **far), None)
    assert refused == ["math/good"]
    assert "shares 4% of the likeliest tokens with the student, less than 5%" in said[0]


def test_a_teacher_stays_while_the_student_is_equal_and_not_when_it_is_ahead() -> None:
    judge = gate()
    refused, _ = judge(metrics(), None)
    caught_up = judge(metrics(math=0.95), refused)
    assert caught_up == (["math/bad"], [])
    ahead = judge(metrics(math=0.97), refused)
    assert ahead[0] == ["math/good", "math/bad"]
    assert judge.teachers.shares["math"] == {}
    back = judge(metrics(math=0.85), ahead[0])
    assert back == (["math/bad"], ["good teaches math"])


def test_a_teacher_that_is_always_right_stays_while_the_student_is_too() -> None:
    judge = gate()
    refused, _ = judge(metrics(good=1.0), None)
    assert judge(metrics(good=1.0, math=1.0), refused) == (["math/bad"], [])
    assert judge(metrics(good=1.0, math=1.0), ["math/good"])[0] == ["math/good", "math/bad"]


def test_a_domain_without_a_teacher_is_an_error_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"no teacher is left for 'tools': other: its accuracy is 50.0%"):
        gate()(metrics(other=0.5), None)


def test_shares_by_quality() -> None:
    judge = gate(by_quality=True)
    judge(metrics(good=0.9, bad=0.6), None)
    assert judge.teachers.shares["math"] == pytest.approx({"good": 0.4, "bad": 0.1})


def test_a_teacher_without_metrics_is_not_excluded() -> None:
    judge = gate()
    assert judge({"length": 3.0}, None) == ([], [])
    assert judge.teachers.shares == SHARES


GATED = {
    "student": "nano/math-base",
    "teacher": {
        "models": {
            "good": {"model": "nano/math-teacher", "domains": ["math"]},
            "bad": {"model": "nano/critic", "domains": ["math"]},
        },
        "gate": {},
    },
    "prompts.limit": 16,
    "eval.prompts.limit": 12,
    "eval.every": 2,
    "eval.diagnostics": 8,
    "rollout.prompts_per_step": 4,
    "rollout.max_new_tokens": 64,
    "checkpoint.every": 1,
    "log": [],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> opd.Result:
    """A gated run of four steps."""
    out = tmp_path_factory.mktemp("gated") / "whole"
    return opd.train("opd", {**GATED, "optimizer.steps": 4, "out": str(out)})


@pytest.mark.slow
def test_a_run_does_not_use_an_excluded_teacher(whole: opd.Result, tmp_path: Path) -> None:
    assert [e["kind"] for e in whole.events] == ["gate"]
    assert "bad does not teach math: its accuracy is 0.0%" in whole.events[0]["text"]
    rows = [json.loads(line) for line in (whole.out / "metrics.jsonl").read_text().splitlines()]
    assert sum("event" in row for row in rows) == 1
    alone = {**GATED, "teacher": {"model": "nano/math-teacher", "gate": {}}}
    one = opd.train("opd", {**alone, "optimizer.steps": 4, "out": str(tmp_path / "one")})
    assert one.events == []
    assert one.after["accuracy"] == whole.after["accuracy"]
    written = one.out / "run.json"
    assert json.loads(written.read_text())["teacher"]["model"] == "nano/math-teacher"
    again = opd.train(written, resume=True)  # the run file that the run wrote is the run's own
    assert (again.steps, again.after["accuracy"]) == (4, one.after["accuracy"])


@pytest.mark.slow
def test_a_resumed_run_with_a_gate_ends_with_the_same_weights(whole: opd.Result) -> None:
    expected = load_file(whole.out / "model.safetensors")
    (whole.out / "model.safetensors").unlink()
    shutil.rmtree(whole.out / "checkpoints" / "000004")
    result = opd.train("opd", {**GATED, "optimizer.steps": 4, "out": str(whole.out)}, resume=True)
    assert result.steps == 4
    again = load_file(whole.out / "model.safetensors")
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    state = json.loads((whole.out / "checkpoints" / "000003" / "state.json").read_text())
    assert state["refused"] == ["math/bad"]


def test_a_single_bad_teacher_is_an_error_before_the_first_step(tmp_path: Path) -> None:
    bad = {**GATED, "teacher": {"model": "nano/critic", "gate": {}}}
    with pytest.raises(ConfigError, match="no teacher is left for 'math': teacher: its accuracy is 0.0%"):
        opd.train("opd", {**bad, "out": str(tmp_path / "run")})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"eval.prompts": None}, "teacher.gate needs held-out prompts .no eval.prompts"),
        ({"eval.diagnostics": 0}, "teacher.gate needs eval.diagnostics .eval.diagnostics=0"),
        (
            {"loss.signal": "hidden"},
            "teacher.gate needs a signal that several teachers can give together .loss.signal=hidden",
        ),
        (
            {"teacher": {"weights": "frozen", "view": "privileged", "gate": {}}},
            "teacher.gate needs a teacher that is a model of its own .teacher.weights=frozen",
        ),
    ],
)
def test_a_gate_that_cannot_measure_is_refused(more: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        opd.train("opd", {**GATED, **more, "out": str(tmp_path / "run")})
