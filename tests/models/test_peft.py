"""A model with an adapter, given from Python: rolled out, read, trained where its owner lets it, and saved."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import opd
from opd.engines.hf import HFEngine
from opd.errors import ModelError
from opd.models.chat import Chat
from opd.models.copies import EmaWeights, frozen_copy
from opd.models.forward import read, student_readings
from opd.models.language import LanguageModel, stop_ids
from opd.models.loading import accept, load
from opd.rollouts.sampler import Sampler
from opd.types import Prompt
from support.models import make_model
from support.slow import slow_but

peft = pytest.importorskip("peft")

SMALL = {
    "optimizer.steps": 2,
    "optimizer.warmup": 0,
    "rollout.prompts_per_step": 4,
    "eval.prompts.limit": 4,
    "checkpoint.every": 1,
    "log": [],
}


def adapted(base: LanguageModel, **settings: Any) -> LanguageModel:
    """A LoRA whose second factor is not zero, so that it changes what the model computes."""
    config = peft.LoraConfig(r=2, **{"target_modules": ["q_proj", "v_proj", "down_proj"], **settings})
    model = peft.get_peft_model(base.model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return dataclasses.replace(base, model=model)


def test_states_and_rollouts_are_those_of_the_adapted_model() -> None:
    plain = make_model(0)
    without = plain.model(torch.tensor([[5, 6, 7]])).logits.detach()
    student = accept(adapted(plain), key="student")
    assert not torch.allclose(student.model(torch.tensor([[5, 6, 7]])).logits, without, atol=1e-3)
    prompts = [Prompt(id=str(i), text="a b c") for i in range(3)]
    sampler = Sampler(HFEngine(student), Chat(student.tokenizer), None, stop_ids=stop_ids(student), max_new_tokens=6)
    rollouts = sampler.rollout(prompts, 0)
    where, states = read(student, student_readings(rollouts), layers=[1])
    logprobs = (states.hidden_TD @ student.head_VD.T).log_softmax(-1).gather(1, where.token_T[:, None])[:, 0]
    assert logprobs.tolist() == pytest.approx([x for r in rollouts for x in r.logprobs], abs=1e-4)
    for row, (index, position) in enumerate(zip(where.rollout_T.tolist(), where.position_T.tolist(), strict=True)):
        context = torch.tensor([[*rollouts[index].prompt_ids, *rollouts[index].completion_ids[:position]]])
        expected = student.model(context).logits[0, -1]
        assert torch.allclose(states.hidden_TD[row] @ student.head_VD.T, expected, atol=1e-4)


@pytest.mark.parametrize("recipe", slow_but(["hint", "opd", "grpo"], "hint"))
def test_an_adapter_alone_trains_and_its_folder_is_saved(recipe: str, tmp_path: Path) -> None:
    student = adapted(load("nano/tools-base" if recipe == "hint" else "nano/math-base", key="student"))
    before = {name: p.clone() for name, p in student.model.named_parameters()}
    opd.train(recipe, {**SMALL, "out": str(tmp_path / "out")}, student=(student.model, student.tokenizer))
    moved = {name for name, p in student.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (tmp_path / "out" / "model.safetensors").exists()
    base = load("nano/tools-base" if recipe == "hint" else "nano/math-base", key="student")
    again = peft.PeftModel.from_pretrained(base.model, tmp_path / "out")
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.allclose(again(ids).logits, student.model(ids).logits, atol=1e-5)


@pytest.mark.parametrize("weights", slow_but(["ema", "live", "frozen"], "ema"))
def test_the_teacher_may_be_a_copy_of_an_adapted_student_and_a_run_goes_on_from_its_checkpoint(
    weights: str, tmp_path: Path
) -> None:
    given = {**SMALL, "teacher.weights": weights, "out": str(tmp_path / "out")}
    if weights == "live":
        given["loss.anchor"] = 1.0
    student = adapted(load("nano/tools-base", key="student"))
    start = {name: p.clone() for name, p in student.model.named_parameters()}
    opd.train("hint", given, student=(student.model, student.tokenizer))
    end = {name: p.clone() for name, p in student.model.named_parameters()}
    (tmp_path / "out" / "checkpoints" / "000002").rename(tmp_path / "gone")
    with torch.no_grad():
        for name, parameter in student.model.named_parameters():
            parameter.copy_(start[name])
    opd.train("hint", given, student=(student.model, student.tokenizer), resume=True)
    assert all(torch.equal(p, end[name]) for name, p in student.model.named_parameters())


def test_a_copy_of_an_adapted_model_stays_and_an_average_follows_its_adapter() -> None:
    student = adapted(make_model(0))
    ids = torch.tensor([[5, 6, 7]])
    frozen, average = frozen_copy(student), frozen_copy(student)
    before = student.model(ids).logits.detach()
    ema = EmaWeights(average.model, student.model, 0.5)
    old = {name: p.clone() for name, p in student.model.named_parameters()}
    with torch.no_grad():
        for name, parameter in student.model.named_parameters():
            if "lora_" in name:
                parameter.add_(1.0)
    ema.update()
    assert torch.equal(frozen.model(ids).logits, before)
    assert not any(p.requires_grad for p in frozen.model.parameters())
    for name, mean in average.model.named_parameters():
        assert torch.allclose(mean, old[name] + (0.5 if "lora_" in name else 0.0))


def test_weights_that_their_owner_froze_stay_frozen(tmp_path: Path) -> None:
    student = load("nano/math-base", key="student")
    student.model.get_input_embeddings().weight.requires_grad_(False)
    frozen = student.model.get_input_embeddings().weight.clone()
    others = {name: p.clone() for name, p in student.model.named_parameters() if p.requires_grad}
    opd.train("opd", {**SMALL, "out": str(tmp_path / "out")}, student=(student.model, student.tokenizer))
    assert torch.equal(student.model.get_input_embeddings().weight, frozen)
    assert all(not torch.equal(p, others[n]) for n, p in student.model.named_parameters() if n in others)


def test_a_model_of_which_nothing_trains_is_refused(tmp_path: Path) -> None:
    """As ``PeftModel.from_pretrained`` leaves it without ``is_trainable=True``; nothing is unfrozen silently."""
    student = load("nano/math-base", key="student")
    student.model.requires_grad_(False)
    with pytest.raises(ModelError, match=r"^student: no parameter .*requires_grad.*Fix: .*is_trainable=True"):
        opd.train("opd", {**SMALL, "out": str(tmp_path / "out")}, student=(student.model, student.tokenizer))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
def test_an_adapter_of_the_output_head_is_refused() -> None:
    with pytest.raises(ModelError, match="student: .*adapter changes the output head.*Fix: leave lm_head out"):
        accept(adapted(make_model(0), target_modules=["lm_head"]), key="student")


def test_an_adapter_that_changed_its_base_is_refused() -> None:
    with pytest.raises(ModelError, match="student: .*init_lora_weights=pissa changed the weights of its base.*Fix: "):
        accept(adapted(make_model(0), init_lora_weights="pissa"), key="student")
    model = adapted(make_model(0))
    model.model.merge_adapter()
    with pytest.raises(ModelError, match=r"student: .*adapter is merged into its base.*Fix: call unmerge_adapter\(\)"):
        accept(model, key="student")


def test_several_active_adapters_are_refused() -> None:
    model = adapted(make_model(0))
    model.model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["k_proj"]))
    model.model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ModelError, match=r"student: .*several active adapters \(default, other\). Fix: activate one"):
        accept(model, key="student")


def test_virtual_tokens_are_refused() -> None:
    base = make_model(0)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ModelError, match="student: .*PROMPT_TUNING.* virtual tokens.*Fix: .*LoRA"):
        accept(dataclasses.replace(base, model=peft.get_peft_model(base.model, config)), key="student")


@pytest.mark.slow
def test_gradient_checkpointing_reaches_the_adapter(tmp_path: Path) -> None:
    moved = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        student = adapted(load("nano/math-base", key="student"))
        given = {**SMALL, "optimizer.gradient_checkpointing": checkpointing, "out": str(tmp_path / str(checkpointing))}
        opd.train("opd", given, student=(student.model, student.tokenizer))
        moved.append({n: p.detach().clone() for n, p in student.model.named_parameters() if p.requires_grad})
    for name, parameter in moved[0].items():
        assert torch.allclose(moved[1][name], parameter, atol=1e-6)


def test_a_given_model_keeps_its_mode() -> None:
    student = make_model(0)
    student.model.train()
    assert accept(student, key="student").model.training
