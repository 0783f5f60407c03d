"""Disagreement of teachers, compared with direct computations on small batches."""

from pathlib import Path

import pytest
import torch

import opd
from opd.axes.views.plain import PlainView
from opd.data.tasks import get_task
from opd.engines.hf import HFEngine
from opd.errors import ConfigError
from opd.experimental.conflict import Conflict
from opd.losses.objectives import FullVocabulary, SeveralTeachers
from opd.models.chat import Chat
from opd.models.language import stop_ids
from opd.models.loading import load
from opd.models.pool import ModelPool
from opd.rollouts.sampler import Sampler
from opd.teachers.by_domain import TeachersByDomain
from opd.teachers.local import LocalTeacher
from opd.types import Rollout

SOURCES = {"math": "nano/math-base", "tools": "nano/tools-base"}


def rollouts() -> list[Rollout]:
    model = load("nano/critic", key="student")
    engine = HFEngine(model)
    made = []
    for task in SOURCES:
        sampler = Sampler(
            engine, Chat(model.tokenizer), get_task(task), stop_ids=stop_ids(model), max_new_tokens=8, max_turns=1
        )
        made += sampler.rollout(get_task(task).prompts("test")[:3], seed=1)
    return made


def measured(divergence: str = "reverse_kl", routes: dict[str, dict[str, float]] | None = None) -> dict[str, float]:
    student = load("nano/critic", key="student")
    pool = ModelPool(SOURCES, key="teacher.models")
    teachers = TeachersByDomain(pool, routes or {name: {name: 1.0} for name in SOURCES})
    objective = SeveralTeachers(inner=FullVocabulary(divergence=divergence))
    found = Conflict(student, teachers, PlainView(), objective)(rollouts())
    assert all(p.grad is None for p in student.model.parameters())
    return found


def test_jsd_is_the_mean_over_the_tokens_of_the_domain() -> None:
    found, batch = measured(), rollouts()
    for domain in SOURCES:
        own = [r for r in batch if r.prompt.domain == domain]
        p, q = (
            (s.hidden_TD.double() @ s.head_VD.double().T).softmax(-1)
            for s in (LocalTeacher(load(m, key="x")).score(own, PlainView().segments(own)) for m in SOURCES.values())
        )
        middle = (p + q) / 2
        jsd = 0.5 * ((p * (p / middle).log()).sum(-1) + (q * (q / middle).log()).sum(-1)).mean()
        assert found[f"conflict/jsd/{domain}/math~tools"] == pytest.approx(jsd.item(), rel=1e-3)
        assert 0 < jsd < 0.6932


def test_the_cosine_equals_that_of_two_backward_passes() -> None:
    student, batch, gradients = load("nano/critic", key="student"), rollouts(), []
    for domain, source in SOURCES.items():
        own = [r for r in batch if r.prompt.domain == domain]
        signal = LocalTeacher(load(source, key="x")).score(own, PlainView().segments(own))
        total = torch.zeros(())
        for index, rollout in enumerate(own):
            ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
            log_p = student.model(input_ids=ids).logits[0, len(rollout.prompt_ids) - 1 : -1].log_softmax(-1)
            rows = signal.rollout_T == index
            log_q = (signal.hidden_TD[rows] @ signal.head_VD.T).log_softmax(-1)
            total = total + (log_p.exp() * (log_p - log_q)).sum()
        student.model.zero_grad()
        (total / len(signal)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in student.model.parameters()]))
    cosine = torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0)
    assert measured()["conflict/cosine/math~tools"] == pytest.approx(cosine.item(), abs=1e-3)


def test_a_domain_without_a_teacher_has_no_gradient() -> None:
    assert not any("cosine" in name for name in measured(routes={"math": {"math": 1.0}, "tools": {}}))


def test_a_run_reports_the_metrics(tmp_path: Path) -> None:
    run = {
        "prompts": [{"task": "math", "limit": 8}, {"task": "tools", "limit": 8}],
        "eval.prompts": [{"task": "math", "split": "test", "limit": 4}, {"task": "tools", "split": "test", "limit": 4}],
        "experimental.conflict": True,
        "eval.diagnostics": 4,
        "teacher": {"models": dict(SOURCES)},
        "rollout.prompts_per_step": 4,
        "rollout.max_new_tokens": 8,
        "optimizer.steps": 1,
        "log": [],
    }
    after = opd.train("opd", {**run, "out": str(tmp_path / "run")}).after
    assert {"conflict/jsd/math/math~tools", "conflict/cosine/math~tools"} <= after.keys()
    with pytest.raises(ConfigError, match="experimental.conflict needs several teachers"):
        opd.train("opd", {"experimental.conflict": True, "out": str(tmp_path / "other")})
