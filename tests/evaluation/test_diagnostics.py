"""Diagnostics: each metric against its definition, token by token in float64, on real rollouts."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import opd
from opd.axes.views.plain import PlainView
from opd.data.tasks import get_task
from opd.engines.hf import HFEngine
from opd.evaluation.diagnostics import diagnose, token_class
from opd.evaluation.metrics import gap_recovery, repeats
from opd.models.chat import Chat
from opd.models.language import LanguageModel, stop_ids
from opd.models.loading import load
from opd.rollouts.sampler import Sampler
from opd.teachers.local import LocalTeacher
from opd.types import Rollout
from support.models import make_model
from support.small_runs import PROMPTS, small_run


@pytest.fixture(scope="module")
def student() -> LanguageModel:
    return load("nano/math-base", key="student")


@pytest.fixture(scope="module")
def teacher() -> LanguageModel:
    return load("nano/math-teacher", key="teacher.model")


@pytest.fixture(scope="module")
def rollouts(student: LanguageModel) -> list[Rollout]:
    engine = HFEngine(student)
    sampler = Sampler(engine, Chat(student.tokenizer), get_task("math"), stop_ids=stop_ids(student), max_new_tokens=64)
    return sampler.rollout(get_task("math").prompts("test")[:8], 0)


def logprobs(model: LanguageModel, rollout: Rollout) -> torch.Tensor:
    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    with torch.no_grad():
        logits = model.model(input_ids=ids).logits[0].double()
    return logits.log_softmax(-1)[len(rollout.prompt_ids) - 1 : -1]


def test_every_metric_equals_its_definition(
    student: LanguageModel, teacher: LanguageModel, rollouts: list[Rollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[float]] = {}
    quarters: dict[int, list[float]] = {}
    for rollout in rollouts:
        for position, (log_p, log_q) in enumerate(
            zip(logprobs(student, rollout), logprobs(teacher, rollout), strict=True)
        ):
            p, q = log_p.exp(), log_q.exp()
            shared = sorted(set(p.topk(16).indices.tolist()) & set(q.topk(16).indices.tolist()))
            p_bar, q_bar = p[shared] / p[shared].sum(), q[shared] / q[shared].sum()
            reverse = float((p * (log_p - log_q)).sum())
            here = {
                "overlap@16": len(shared) / 16,
                "overlap_mass": float(p[shared].sum()),
                "overlap_advantage": float((p_bar * (q_bar / p_bar).log()).mean()),
                "entropy": float(-(p * log_p).sum()),
                "teacher_entropy": float(-(q * log_q).sum()),
                "entropy_gap": abs(float((p * log_p).sum() - (q * log_q).sum())),
                "forward_kl": float((q * (log_q - log_p)).sum()),
                "reverse_kl": reverse,
            }
            for name, value in here.items():
                seen.setdefault(name, []).append(value)
            quarters.setdefault(position * 4 // len(rollout.completion_ids), []).append(reverse)
            token = rollout.completion_ids[position]
            seen.setdefault(f"reverse_kl/{token_class(student.tokenizer, token)}", []).append(reverse)
    monkeypatch.setattr("opd.evaluation.distributions.CHUNK_BYTES", 4 * 300 * 7)
    got = diagnose(student, rollouts, LocalTeacher(teacher), PlainView())
    wanted = {f"teacher/{name}": math.fsum(values) / len(values) for name, values in seen.items()}
    wanted |= {f"teacher/reverse_kl/quarter_{n + 1}": math.fsum(v) / len(v) for n, v in quarters.items()}
    assert got.keys() == wanted.keys()
    assert got == pytest.approx(wanted, rel=2e-3, abs=2e-5)
    assert {"teacher/reverse_kl/number", "teacher/reverse_kl/mark", "teacher/reverse_kl/word"} < got.keys()


def test_a_student_compared_with_itself_has_no_divergence(student: LanguageModel, rollouts: list[Rollout]) -> None:
    got = diagnose(student, rollouts, LocalTeacher(student), PlainView())
    assert got["teacher/overlap@16"] == 1.0
    assert got["teacher/reverse_kl"] == pytest.approx(0, abs=1e-6)
    assert got["teacher/entropy_gap"] == pytest.approx(0, abs=1e-6)


def test_a_text_that_compresses_more_than_tenfold_is_repetitive() -> None:
    assert repeats("so it is, " * 2000)
    assert not repeats("".join(str(n * n) for n in range(3000)))
    assert repeats("0123456789 abcdef" * 40 + "again " * 3000)


def test_gap_recovery_is_the_closed_share_of_the_accuracy_gap() -> None:
    before = {"accuracy": 0.5, "teacher_accuracy": 1.0}
    assert gap_recovery(before, {"accuracy": 0.9, "teacher_accuracy": 1.0}) == {"gap_recovery": pytest.approx(0.8)}
    assert gap_recovery({"accuracy": 1.0}, {"accuracy": 0.9, "teacher_accuracy": 1.0}) == {}
    assert gap_recovery({"accuracy": 0.5}, {"accuracy": 0.9}) == {}


def test_nothing_is_recovered_from_a_teacher_that_was_worse() -> None:
    assert gap_recovery({"accuracy": 0.5}, {"accuracy": 0.2, "teacher_accuracy": 0.1}) == {}


@pytest.mark.slow
def test_a_run_writes_diagnostics_at_every_evaluation(tmp_path: Path) -> None:
    small: dict[str, Any] = {"optimizer.steps": 2, "eval.every": 1, "eval.prompts.limit": 8, "eval.diagnostics": 4}
    small |= {"rollout.prompts_per_step": 4, "log": []}
    result = opd.train("opd", {**small, "out": str(tmp_path / "run")})
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row["eval"] for row in rows if "eval" in row]
    assert len(evaluations) == 3
    assert all(
        {"teacher/overlap@16", "teacher_accuracy", "gap_recovery", "repetition_rate"} <= metrics.keys()
        for metrics in evaluations
    )
    assert result.before["gap_recovery"] == 0.0
    assert "teacher/forward_kl" not in (tmp_path / "run" / "README.md").read_text()
    off = opd.train("opd", {**small, "eval.diagnostics": 0, "out": str(tmp_path / "off")})
    assert off.after["accuracy"] == result.after["accuracy"]
    assert not any(name.startswith(("teacher", "gap")) for name in off.after)


def test_the_divergence_of_an_evaluation_is_on_the_scale_of_the_loss(tmp_path: Path) -> None:
    tree = small_run(tmp_path / "run", eval={"divergence": True, "every": 1})
    tree |= {"optimizer": {"lr": 1e-9, "steps": 1}, "rollout": {"prompts_per_step": 32, "max_new_tokens": 6}}
    result = opd.train(tree, student=make_model(0), teacher=make_model(1), prompts=PROMPTS, eval_prompts=PROMPTS)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    loss = next(row["train"]["loss"] for row in rows if "train" in row)
    assert result.after["reverse_kl"] == pytest.approx(loss, rel=0.3)


@pytest.mark.slow
def test_a_feedback_view_is_compared_on_groups_of_attempts(tmp_path: Path) -> None:
    small = {"optimizer.steps": 1, "eval.prompts.limit": 8, "rollout.prompts_per_step": 4, "log": []}
    result = opd.train("sdpo", {**small, "eval.divergence": True, "out": str(tmp_path / "run")})
    assert result.before["teacher/overlap@16"] > 0
    assert result.before["reverse_kl"] > 0
