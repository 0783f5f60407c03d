"""The teacher that ignores carries: a student inherits its bias, and the gate refuses it."""

from pathlib import Path

import pytest

import opd
from opd.data.tasks import get_task
from opd.engines.hf import HFEngine
from opd.models.chat import Chat
from opd.models.language import LanguageModel, stop_ids
from opd.models.loading import load
from opd.nano.traces import without_carry
from opd.rollouts.sampler import Sampler
from opd.types import Sampling

PROMPTS = [p for p in get_task("math").prompts("test") if without_carry(p.data["a"], p.data["b"]) != p.answer][:64]
"""Sums with a carry."""


def forgetful(model: LanguageModel) -> float:
    """Share of sums with a carry that are answered without it."""
    engine = HFEngine(model)
    sampler = Sampler(
        engine,
        Chat(model.tokenizer),
        get_task("math"),
        sampling=Sampling(temperature=0),
        stop_ids=stop_ids(model),
        max_new_tokens=64,
    )
    wrong = 0
    for rollout in sampler.rollout(PROMPTS, seed=0):
        said = without_carry(rollout.prompt.data["a"], rollout.prompt.data["b"]).rsplit("answer ", 1)[1]
        text = rollout.transcript[-1]["content"].rsplit("answer", 1)[-1].split("<|")[0]
        wrong += "".join(text.split()) == said
    return wrong / len(PROMPTS)


def test_the_biased_teacher_is_confident_and_wrong() -> None:
    assert forgetful(load("nano/math-biased", key="teacher")) > 0.9
    assert forgetful(load("nano/math-teacher", key="teacher")) < 0.05
    assert forgetful(load("nano/math-base", key="student")) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("gate", [None, {}])
def test_the_student_inherits_the_bias_without_the_gate(gate: dict[str, float] | None, tmp_path: Path) -> None:
    both = {
        "good": {"model": "nano/math-teacher", "domains": ["math"]},
        "biased": {"model": "nano/math-biased", "domains": ["math"], "weight": 3},
    }
    run = {
        "teacher": {"models": both, "gate": gate},
        "rollout.prompts_per_step": 32,
        "optimizer.steps": 40,
        "eval.every": 20,
        "eval.prompts.limit": 64,
        "eval.diagnostics": 16,
        "guards.drop": 1.0,
        "guards.below_start": 1.0,
        "log": [],
    }
    result = opd.train("opd", {**run, "out": str(tmp_path / "run")})
    share = forgetful(load(str(tmp_path / "run"), key="student"))
    said = [event["text"] for event in result.events]
    if gate is None:
        assert share > 0.5
        assert result.after["accuracy"] < result.before["accuracy"] - 0.2
    else:
        assert any(text.startswith("biased does not teach math: its accuracy is") for text in said)
        assert not any("good does not" in text for text in said)
        assert share < 0.1
        assert result.after["accuracy"] > result.before["accuracy"]
