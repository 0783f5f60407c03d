"""Students of the shapes that published models have: more head rows than tokens, an own head, two EOS ids."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import opd
from opd.engines.hf import HFEngine
from opd.losses import token_logprobs
from opd.models.chat import Chat
from opd.models.forward import read, student_readings
from opd.models.language import stop_ids
from opd.rollouts.sampler import Sampler
from opd.types import Prompt, Sampling
from support.interrupt import Interrupt
from support.models import SHAPES, make_model
from support.slow import slow_but
from support.small_runs import small_run

PROMPTS = [{"prompt": f"{a} {b}"} for a in "abcd" for b in "efgh"]


def train(out: Path, shape: dict[str, Any], **more: Any) -> opd.Result:
    rollout, optimizer = {"prompts_per_step": 8, "max_new_tokens": 8}, {"lr": 1e-2, "steps": 3}
    tree = small_run(out, rollout=rollout, optimizer=optimizer, checkpoint={"every": 1})
    models: dict[str, Any] = {"student": make_model(0, **shape), "teacher": make_model(1, layers=3, hidden=48, **shape)}
    return opd.train(tree, prompts=PROMPTS, **models, **more)


@pytest.mark.parametrize("name", slow_but(SHAPES, *list(SHAPES)[:2]))
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
    assert saved.get_output_embeddings().weight.shape == made.model.get_output_embeddings().weight.shape
    assert saved.config.tie_word_embeddings == made.model.config.tie_word_embeddings
    assert saved.generation_config.eos_token_id == made.model.generation_config.eos_token_id


def test_a_student_in_shards_keeps_a_generation_config_that_contradicts_itself(tmp_path: Path) -> None:
    for name, seed in (("s", 0), ("t", 1)):
        model = make_model(seed, tied=False)
        model.model.save_pretrained(tmp_path / name, max_shard_size="20KB")
        model.tokenizer.save_pretrained(tmp_path / name)
    assert len(list((tmp_path / "s").glob("model-*.safetensors"))) > 1
    config = tmp_path / "s" / "generation_config.json"
    contradiction = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}
    config.write_text(json.dumps(contradiction))
    tree = small_run(tmp_path / "out", student=str(tmp_path / "s"), teacher={"model": str(tmp_path / "t")})
    tree["optimizer"] = {"lr": 1e-2, "steps": 1, "gradient_checkpointing": True}
    out = opd.train(tree, prompts=PROMPTS).out
    assert json.loads((out / "generation_config.json").read_text()).items() >= contradiction.items()
    saved, before = AutoModelForCausalLM.from_pretrained(out), make_model(0, tied=False).model
    assert not torch.equal(saved.lm_head.weight, before.lm_head.weight)


def test_every_eos_id_ends_a_turn() -> None:
    assert stop_ids(make_model(**SHAPES["two EOS ids"])) == {2, 23}


def test_rows_that_no_token_has_are_never_sampled_and_in_no_distribution_that_a_loss_reads() -> None:
    model = make_model(0, vocab=64, tied=False)
    with torch.no_grad():
        model.model.lm_head.weight[31:] *= 3  # more probable than any token
    prompts = [Prompt(id=str(n), text="a b c") for n in range(64)]
    sampler = Sampler(HFEngine(model), Chat(model.tokenizer), None, stop_ids=frozenset(), max_new_tokens=8)
    for sampling in (Sampling(), Sampling(temperature=0), Sampling(temperature=2.0)):
        rollouts = replace(sampler, sampling=sampling).rollout(prompts, 0)
        assert max(i for r in rollouts for i in r.completion_ids) < 31
    rollouts = sampler.rollout(prompts, 0)
    where, states = read(model, student_readings(rollouts))
    assert states.head_VD.shape == (31, 32)
    sampled = torch.tensor([x for r in rollouts for x in r.logprobs])
    torch.testing.assert_close(token_logprobs(states.hidden_TD, states.head_VD, where.token_T), sampled)
    # Their weights have no gradient, and the others have what a head without them would have.
    states.head_VD.sum().backward()
    gradient = model.model.lm_head.weight.grad
    assert gradient is not None
    assert not gradient[31:].any()
    assert gradient[:31].all()


def test_heads_of_different_padding_are_compared_on_the_tokens(tmp_path: Path) -> None:
    rollout = {"prompts_per_step": 4, "max_new_tokens": 4}
    tree = small_run(tmp_path / "out", rollout=rollout, optimizer={"lr": 1e-3, "steps": 1})
    given: dict[str, Any] = {"student": make_model(0, vocab=64), "teacher": make_model(1, vocab=40)}
    assert opd.train(tree, prompts=PROMPTS, **given).steps == 1
    given["teacher"] = make_model(1, vocab=20)
    with pytest.raises(opd.OpdError, match="teacher.model: the tokenizer has ids up to 30, but .* only 20 rows"):
        opd.train(tree | {"out": str(tmp_path / "short")}, prompts=PROMPTS, **given)
