"""Whole runs of tiny real pipelines through ``opd.train``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import opd
from opd.diffusion.kernels import kernel_of
from opd.diffusion.models import load, of_pipeline
from opd.diffusion.sampler import DenoisingSampler
from opd.types import Prompt
from tiny_pipelines import KINDS, run_tree

PROMPTS = [Prompt(id="a", text="big red circle", data={"label": 1}), Prompt(id="b", text="blue", data={"label": 3})]


def figures(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["train"] for row in rows if "train" in row]


def drawn(pipeline: Any) -> torch.Tensor:
    """Clean latents of two prompts, always from the same noise."""
    model = of_pipeline(pipeline, source="s", key="student", text_tokens=0)
    kernel = kernel_of(model.pipeline.scheduler, steps=3)
    return torch.stack([t.latents_KX[-1] for t in DenoisingSampler(model, kernel).rollout(PROMPTS, 0)])


@pytest.mark.parametrize(("kind", "lora"), [*((kind, False) for kind in KINDS), ("sd3", True), ("sd", True)])
def test_every_kind_of_pipeline_trains_and_leaves_one(tmp_path: Path, folder: Any, kind: str, lora: bool) -> None:
    adapter = {"lora": {"rank": 2, "targets": ["to_q", "to_k", "to_v"]}} if lora else {}
    tree = run_tree(tmp_path / "out", folder(kind), teacher={"model": folder(kind, 1)}, **adapter)
    result = opd.train(tree)
    assert result.steps == 2
    for step in figures(result.out):
        assert math.isfinite(step["loss"])
        assert step["loss"] > 0
        assert step["grad_norm"] > 0
    before, after = drawn(load(folder(kind), key="s").pipeline), drawn(load(str(result.out), key="s").pipeline)
    assert not torch.equal(before, after)
    assert (result.out / "lora").is_dir() == lora
