"""A student that equals its teacher stays where it is, whatever dropout its config asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import opd
from opd.models.language import checkpoint_activations
from support.architectures import make
from support.small_runs import PROMPTS, small_run

STEPS, LR = 5, 1e-3


def train(out: Path, architecture: str, divergence: dict[str, Any], **optimizer: Any) -> float:
    """Returns the largest change of a weight."""
    student, teacher = make(architecture), make(architecture)
    start = [p.detach().clone() for p in student.model.parameters()]
    tree = small_run(out, optimizer={"lr": LR, "steps": STEPS, **optimizer}, loss={"divergence": divergence})
    result = opd.train(tree | {"report": False}, student=student, teacher=teacher, prompts=PROMPTS)
    assert result.steps == STEPS
    return max(float((p.detach() - q).abs().max()) for p, q in zip(student.model.parameters(), start, strict=True))


@pytest.mark.parametrize("architecture", ["Qwen3", "GPT-2"])
@pytest.mark.parametrize("divergence", ["jsd", "forward_kl", "reverse_kl"])
def test_nothing_moves(architecture: str, divergence: str, tmp_path: Path) -> None:
    settings = {"type": divergence} | ({"beta": 0.5} if divergence == "jsd" else {})
    assert train(tmp_path / "out", architecture, settings) < STEPS * LR / 20


def test_layers_that_are_recomputed_have_no_dropout_either(tmp_path: Path) -> None:
    assert train(tmp_path / "out", "GPT-2", {"type": "forward_kl"}, gradient_checkpointing=True) < STEPS * LR / 20
    model = make("GPT-2")
    checkpoint_activations(model)
    model.train()
    training = {type(m).__name__ for m in model.model.modules() if m.training}
    assert training == {"GPT2Block"}
