"""Students of the shapes that published models have: more head rows than tokens, an own head, two EOS ids."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import opd
from opd.models.language import stop_ids
from support.interrupt import Interrupt
from support.models import SHAPES, make_model
from support.small_runs import small_run

PROMPTS = [{"prompt": f"{a} {b}"} for a in "abcd" for b in "efgh"]


def train(out: Path, shape: dict[str, Any], **more: Any) -> opd.Result:
    rollout, optimizer = {"prompts_per_step": 8, "max_new_tokens": 8}, {"lr": 1e-2, "steps": 3}
    tree = small_run(out, rollout=rollout, optimizer=optimizer, checkpoint={"every": 1})
    models: dict[str, Any] = {"student": make_model(0, **shape), "teacher": make_model(1, layers=3, hidden=48, **shape)}
    return opd.train(tree, prompts=PROMPTS, **models, **more)


@pytest.mark.parametrize("name", SHAPES)
def test_a_run_trains_it_saves_it_whole_and_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", SHAPES[name])
    rows = [json.loads(line) for line in (whole.out / "metrics.jsonl").read_text().splitlines()]
    trained = [row["train"] for row in rows if "train" in row]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in trained)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", SHAPES[name], callbacks=[Interrupt(2)])
    train(tmp_path / "cut", SHAPES[name], resume=True)
    expected, again = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(again[key], expected[key]) for key in expected)
    saved, made = AutoModelForCausalLM.from_pretrained(whole.out), make_model(0, **SHAPES[name])
    assert saved.get_output_embeddings().weight.shape == made.head_VD.shape
    assert saved.config.tie_word_embeddings == made.model.config.tie_word_embeddings
    assert saved.generation_config.eos_token_id == made.model.generation_config.eos_token_id


def test_every_eos_id_ends_a_turn() -> None:
    assert stop_ids(make_model(**SHAPES["two EOS ids"])) == {2, 23}
