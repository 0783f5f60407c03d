"""Models: trained and shared weights, adapters, saved folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils import get_peft_model_state_dict
from torch import Tensor

import opd
from opd.config.diffusion import AdapterConfig
from opd.diffusion.models import (
    ADAPTER,
    DenoisingModel,
    add_adapter,
    frozen_copy,
    is_adapter,
    load,
    with_adapter,
)
from opd.diffusion.schedules import schedule_of
from opd.errors import ConfigError, ModelError
from opd.types import Prompt
from support.families import read_denoising
from support.tiny_pipelines import run_tree

PROMPTS = [Prompt(id="a", text="big red circle", data={"label": 1}), Prompt(id="b", text="blue", data={"label": 3})]
RANK_2 = AdapterConfig(rank=2, alpha=8)


def said(model: DenoisingModel) -> Tensor:
    """A model's prediction at two fixed states."""
    generator = torch.Generator().manual_seed(3)
    latents_TX = torch.randn((2, *model.shape), generator=generator)
    with torch.no_grad():
        return model.predict(latents_TX, torch.tensor([700.0, 200.0]), model.encode(PROMPTS))


def adapted_student(model: Any, kind: str = "sd3") -> DenoisingModel:
    student: DenoisingModel = model(kind)
    student.model.requires_grad_(False)
    add_adapter(student, **RANK_2.model_dump())
    return student


@torch.no_grad()
def move(model: DenoisingModel, by: float = 0.1) -> None:
    for parameter in model.model.parameters():
        if parameter.requires_grad:
            parameter += by * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("kind", ["sd3", "sd"])
def test_a_new_adapter_changes_nothing_and_alone_trains(model: Any, kind: str) -> None:
    plain, student = model(kind), adapted_student(model, kind)
    torch.testing.assert_close(said(student), said(plain), rtol=0, atol=1e-6)
    training = [n for n, p in student.model.named_parameters() if p.requires_grad]
    assert training
    assert all(".lora_" in name for name in training)
    move(student)
    assert (said(student) - said(plain)).abs().max() > 1e-3


def test_a_frozen_copy_shares_frozen_weights_and_does_not_change(model: Any) -> None:
    student = adapted_student(model)
    copied = frozen_copy(student)
    before = said(copied)
    theirs = dict(copied.model.named_parameters())
    for name, parameter in student.model.named_parameters():
        assert (parameter.data_ptr() == theirs[name].data_ptr()) != parameter.requires_grad
    assert not any(p.requires_grad for p in theirs.values())
    move(student)
    assert torch.equal(said(copied), before)
    assert not torch.equal(said(student), before)


def test_a_frozen_copy_of_a_whole_student_does_not_change(model: Any) -> None:
    student = model("sd3")
    student.model.requires_grad_(True)
    copied = frozen_copy(student)
    before = said(copied)
    move(student)
    assert torch.equal(said(copied), before)
    assert all(p.requires_grad for p in student.model.parameters())


@pytest.mark.parametrize("kind", ["sd3", "sd"])
def test_a_saved_adapter_is_merged_and_also_saved_alone(tmp_path: Path, model: Any, kind: str) -> None:
    student = adapted_student(model, kind)
    move(student)
    student.save(tmp_path)
    expected = said(student)
    assert student.pipeline.components["transformer" if kind == "sd3" else "unet"] is student.model
    torch.testing.assert_close(said(load(str(tmp_path), key="s", text_tokens=0)), expected, rtol=1e-4, atol=1e-5)
    assert is_adapter(str(tmp_path / "lora"))
    assert not is_adapter(str(tmp_path))
    beside = with_adapter(model(kind), str(tmp_path / "lora"), key="teacher.model")
    torch.testing.assert_close(said(beside), expected, rtol=1e-4, atol=1e-5)


def as_pipelines_save(student: DenoisingModel, to: Path) -> Path:
    """The adapter with the denoiser's name as prefix of every tensor, as a pipeline saves it."""
    layers, config = get_peft_model_state_dict(student.model), student.model.peft_config["default"].to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    student.pipeline.save_lora_weights(to, transformer_lora_layers=layers, transformer_lora_adapter_metadata=config)
    return to


def test_adapters_load_with_and_without_the_denoisers_prefix(tmp_path: Path, model: Any) -> None:
    student = adapted_student(model)
    with torch.no_grad():
        for parameter in (p for p in student.model.parameters() if p.requires_grad):
            parameter.normal_(0, 0.3)
    student.save(tmp_path / "run")
    prefixed = as_pipelines_save(student, tmp_path / "prefixed")
    base = model("sd3")
    without = with_adapter(base, str(tmp_path / "run" / "lora"), key="teacher.model")
    named = with_adapter(base, str(prefixed), key="teacher.model")
    assert not torch.allclose(said(student), said(base), atol=1e-3)
    for teacher in (without, named):
        torch.testing.assert_close(said(teacher), said(student), rtol=1e-4, atol=1e-5)


def test_an_adapter_of_another_denoiser_is_refused(tmp_path: Path, model: Any) -> None:
    student = adapted_student(model)
    student.save(tmp_path / "run")
    lora = tmp_path / "run" / "lora"
    with pytest.raises(ModelError, match="teacher.model: cannot load .*the LoRA of a denoiser like the student's"):
        with_adapter(model("sd"), str(lora), key="teacher.model")
    with pytest.raises(ModelError, match="teacher.model: cannot load"):
        with_adapter(model("sd"), str(as_pipelines_save(student, tmp_path / "prefixed")), key="teacher.model")
    (lora / ADAPTER).write_bytes(b"rubbish")
    with pytest.raises(ModelError, match="teacher.model: cannot load"):
        with_adapter(model("sd3"), str(lora), key="teacher.model")


@pytest.fixture
def lora(tmp_path: Path, folder: Any) -> Path:
    """The folder of a LoRA of the tiny SD3, trained for two steps."""
    tree = run_tree(tmp_path / "teacher", folder("sd3"), teacher={"model": folder("sd3", 1)}, lora=RANK_2.model_dump())
    opd.train(tree, {"optimizer.lr": 0.3})
    return tmp_path / "teacher" / "lora"


@pytest.mark.parametrize("adapter", [None, {"rank": 3}])
def test_a_lora_teacher_does_not_change(
    tmp_path: Path, folder: Any, lora: Path, adapter: dict[str, int] | None
) -> None:
    """Also if all of the student's weights train, so that nothing is shared."""
    from opd.axes.base import Objects
    from opd.diffusion.run import DenoisingRun
    from opd.output.run_log import RunLog

    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"model": str(lora)}, lora=adapter)
    run = DenoisingRun.load(read_denoising(tree), Objects())
    teacher = run.teachers["teacher"]
    before, start = said(teacher), said(run.student)
    assert not torch.allclose(before, start, atol=1e-4)
    loop = run.assemble(RunLog(tmp_path / "metrics.jsonl", [], []))
    loop._step(0)
    first = loop.optimizer.lr(0)
    assert first > 0
    loop._step(1)
    assert not torch.equal(said(run.student), start)
    assert torch.equal(said(teacher), before)


def test_a_student_approaches_a_lora_teacher(tmp_path: Path, folder: Any, lora: Path) -> None:
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"model": str(lora)}, optimizer={"steps": 12, "lr": 3e-3})
    opd.train(tree, {"rollout.prompts_per_step": 8})
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train"]["loss"] for row in rows if "train" in row]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("kind", ["ddim", "ddpm", "dit"])
def test_a_lora_for_a_denoiser_without_adapters_is_refused(tmp_path: Path, folder: Any, lora: Path, kind: str) -> None:
    tree = run_tree(tmp_path / "out", folder(kind), teacher={"model": folder(kind, 1)}, lora={"rank": 2})
    with pytest.raises(ModelError, match=r"lora: the denoiser of .* diffusers has no adapters"):
        opd.train(tree)
    with pytest.raises(ModelError, match=r"teacher.model: the denoiser of .* diffusers has no adapters"):
        opd.train(tree, {"lora": None, "teacher.model": str(lora)})
    assert not (tmp_path / "out").exists()


def test_unknown_lora_layers_are_refused(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"model": folder("sd3", 1)}, lora={"targets": ["q_proj"]})
    with pytest.raises(ConfigError, match=r"lora.targets: .*q_proj.*. Fix: name layers of"):
        opd.train(tree)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------- what is predicted


def test_guidance_extrapolates_from_the_unconditional_prediction(model: Any) -> None:
    m = model("sd3")
    conditioning = m.encode(PROMPTS)
    latents_TX, time_T = torch.randn(2, 3, 8, 8), torch.tensor([700.0, 200.0])
    with torch.no_grad():
        without = m.predict(latents_TX, time_T, m.encode([Prompt(id="", text="")]) * 2)
        with_prompt, guided = (
            m.predict(latents_TX, time_T, conditioning),
            m.predict(latents_TX, time_T, conditioning, 3.0),
        )
    assert not torch.allclose(with_prompt, without, atol=1e-4)
    torch.testing.assert_close(guided, without + 3 * (with_prompt - without))


def test_images_are_encoded_and_decoded(model: Any) -> None:
    images_BX = torch.rand(2, 3, 8, 8) * 2 - 1
    m = model("sd3")
    assert torch.equal(m.decode(m.latents_of(images_BX)), images_BX)
    assert torch.equal(model("ddim").latents_of(images_BX), images_BX)
    assert model("sd").latents_of(torch.rand(2, 3, 30, 20)).shape == (2, 4, 8, 8)  # of any size
    vae = model("sd").pipeline.vae
    large_BX = torch.rand(1, 3, 16, 16)
    expected = vae.encode(large_BX).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(model("sd").latents_of(large_BX), expected)


def test_conditioning_of_different_shapes_keeps_its_order(model: Any) -> None:
    """Some rows have image tokens after the text's tokens."""
    m = model("sd3")
    image = torch.rand(3, 8, 8)
    conditioning = m.encode([PROMPTS[0], PROMPTS[1], PROMPTS[0]], [image, None, None])
    assert [len(t["encoder_hidden_states"]) for t in conditioning] == [10, 6, 6]
    latents_TX, time_T = torch.randn(3, 3, 8, 8), torch.tensor([700.0, 200.0, 10.0])
    with torch.no_grad():
        together = m.predict(latents_TX, time_T, conditioning)
        alone = [m.predict(latents_TX[i][None], time_T[i][None], [conditioning[i]])[0] for i in range(3)]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_a_schedule_does_not_change_the_pipelines_scheduler(model: Any) -> None:
    scheduler = model("sd3").pipeline.scheduler
    before = scheduler.sigmas.clone()
    schedule_of(scheduler, steps=3)
    assert torch.equal(scheduler.sigmas, before)
