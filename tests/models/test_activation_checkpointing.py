"""Activations that are computed again in the backward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import opd
from opd.models.language import checkpoint_activations
from support.models import make_model


def train(out: Path, **optimizer: Any) -> opd.Result:
    tree: dict[str, Any] = {
        "student": "s",
        "prompts": {"path": "p.jsonl"},
        "teacher": {"model": "t"},
        "rollout": {"prompts_per_step": 4, "max_new_tokens": 6},
        "optimizer": {"lr": 1e-2, "steps": 2, **optimizer},
        "log": [],
        "out": str(out),
    }
    prompts = [{"prompt": f"{a} b"} for a in "cdef"]
    return opd.train(tree, student=make_model(0), teacher=make_model(1), prompts=prompts)


def test_a_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    kept, again = train(tmp_path / "kept"), train(tmp_path / "again", gradient_checkpointing=True)
    expected = load_file(kept.out / "model.safetensors")
    for name, tensor in load_file(again.out / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


def test_blocks_are_checkpointed() -> None:
    model = make_model(0)
    checkpoint_activations(model)
    assert all(block.gradient_checkpointing for block in model.model.model.layers)
