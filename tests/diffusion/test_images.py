"""Supervised fine-tuning on images, and loading of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import opd
from opd.axes.base import Objects
from opd.config.run import PromptsConfig
from opd.diffusion.data import load_image_prompts
from opd.diffusion.images import grid, image_of, save, to_pixels, to_tensor
from opd.diffusion.run import DenoisingRun
from opd.diffusion.sampler import training_levels
from opd.diffusion.types import PredictionSignal, Trajectory
from opd.errors import DataError
from opd.loop import Loop
from opd.output.run_log import RunLog
from opd.types import Prompt
from support.families import read_denoising
from support.tiny_pipelines import make_pipeline, prompt_rows, run_tree, write_rows

FINE_TUNING: dict[str, Any] = {
    "teacher": {"weights": "frozen"},
    "loss": {"signal": "image", "divergence": "velocity"},
    "rollout": {"source": "images", "steps": 5},
}


def paint(path: Path, seed: int, size: int = 8) -> Any:
    generator = torch.Generator().manual_seed(seed)
    image = Image.fromarray(torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8).numpy())
    image.save(path)
    return image


def prompts(tmp_path: Path, every: int = 1, size: int = 8) -> dict[str, str]:
    rows = prompt_rows()
    for n, row in enumerate(rows[::every]):
        paint(tmp_path / f"{n}.png", n, size)
        row["image"] = f"{n}.png"
    return {"path": write_rows(tmp_path / "images.jsonl", rows)}


def loop_of(tree: dict[str, Any], tmp_path: Path) -> tuple[DenoisingRun, Loop]:
    run = DenoisingRun.load(read_denoising(tree), Objects())
    return run, run.assemble(RunLog(tmp_path / "metrics.jsonl", [], []))


def step(loop: Loop) -> tuple[list[Trajectory], dict[str, Any]]:
    rollouts = loop.sampler.rollout(loop.curriculum.step(0), 0, 0)
    assert all(isinstance(r, Trajectory) for r in rollouts)
    return [r for r in rollouts if isinstance(r, Trajectory)], {s.term.name: s for s in loop.score(rollouts)}


# ---------------------------------------------------------------------------------------------------- plain fine-tuning


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("sd3", {}),
        ("sd3", {"shift": 3.0}),
        ("ddim", {}),
        ("ddim", {"prediction": "v_prediction"}),
        ("ddim", {"timestep_spacing": "trailing", "steps_offset": 1}),
        ("sd", {}),
    ],
)
def test_the_target_of_a_noised_image_is_its_clean_image(
    tmp_path: Path, folder: Any, kind: str, changes: dict[str, Any]
) -> None:
    """v = ε − x0 of flow matching; ε, or v = √ᾱ ε − √(1 − ᾱ) x0, of diffusion."""
    student = folder(kind, **changes)
    run, loop = loop_of(run_tree(tmp_path / "out", student, prompts=prompts(tmp_path), **FINE_TUNING), tmp_path)
    rollouts, said = step(loop)
    signal = said["distill"].signal
    assert isinstance(signal, PredictionSignal)
    assert len(signal) == 20
    noise_TX = torch.cat([r.noise_KX for r in rollouts])
    clean_TX = torch.stack([r.latents_KX[-1] for r in rollouts]).repeat_interleave(5, 0)
    assert torch.equal(clean_TX[0], run.student.latents_of(image_of(rollouts[0].prompt)[None])[0])  # type: ignore[index]
    level_T, signal_T = (table[signal.step_T].float().view(-1, 1, 1, 1) for table in levels(run))
    states_TX = torch.cat([r.latents_KX[:-1] for r in rollouts])
    torch.testing.assert_close(states_TX, signal_T * clean_TX + level_T * noise_TX)
    if kind == "sd3":
        expected_TX = noise_TX - clean_TX
    elif "prediction" in changes:
        expected_TX = signal_T * noise_TX - level_T * clean_TX
    else:
        expected_TX = noise_TX
    # near the clean image the noise is hardly larger than rounding errors
    torch.testing.assert_close(signal.target_TX, expected_TX, atol=2e-3, rtol=1e-4)
    loop._step(0)


def levels(run: DenoisingRun) -> tuple[Tensor, Tensor]:
    return run.samplers.schedule.level_K, run.samplers.schedule.signal_K


def test_training_levels_are_all_pretraining_times() -> None:
    from opd.diffusion.models import of_pipeline

    for kind, changes in (("sd", {}), ("ddim", {"timestep_spacing": "trailing"}), ("ddpm", {"steps_offset": 1})):
        pipeline = make_pipeline(kind, **changes)
        schedule = training_levels(of_pipeline(pipeline, source="s", key="student"))
        assert schedule.time_K.tolist() == list(range(999, -1, -1))
        torch.testing.assert_close(schedule.signal_K.float().square(), pipeline.scheduler.alphas_cumprod.flip(0))
    schedule = training_levels(of_pipeline(make_pipeline("sd3"), source="s", key="student"))
    torch.testing.assert_close(schedule.level_K, torch.arange(1000, 0, -1).double() / 1000, atol=1e-6, rtol=0)


def test_the_anchor_covers_prompts_without_an_image(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(tmp_path / "out", folder("sd3"), prompts=prompts(tmp_path, every=2), **FINE_TUNING)
    tree["loss"] = {**tree["loss"], "anchor": 0.5}
    rollouts, said = step(loop_of(tree, tmp_path)[1])
    has = {i for i, r in enumerate(rollouts) if "image" in r.prompt.data}
    assert 0 < len(has) < len(rollouts)
    assert {i for i, r in enumerate(rollouts) if r.source == "references"} == has
    assert set(said["distill"].signal.rollout_T.tolist()) == has
    assert set(said["anchor"].signal.rollout_T.tolist()) == set(range(len(rollouts))) - has


def test_fine_tuning_lowers_the_loss(tmp_path: Path, folder: Any) -> None:
    rows = [{"id": "p", "prompt": "red", "image": "0.png"}]
    paint(tmp_path / "0.png", 0, 20)  # of any size
    path = write_rows(tmp_path / "images.jsonl", rows)
    tree = run_tree(tmp_path / "out", folder("sd3"), prompts={"path": path}, **FINE_TUNING)
    opd.train(tree, {"rollout.prompts_per_step": 1, "rollout.steps": 32, "optimizer.steps": 15, "optimizer.lr": 0.01})
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    losses = [row["train"]["loss"] for row in map(json.loads, lines) if "train" in row]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_a_teacher_with_another_schedule_can_generate_the_images(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(tmp_path / "out", folder("sd3"), **FINE_TUNING)
    tree["rollout"]["source"] = {"type": "images", "of": "teacher"}
    tree["teacher"] = {"model": folder("sd3", 1, shift=3.0)}
    run, loop = loop_of(tree, tmp_path)
    rollouts, said = step(loop)
    drawn = run.samplers.of_teachers().rollout([r.prompt for r in rollouts], 0)
    for own, theirs in zip(rollouts, drawn, strict=True):
        assert torch.equal(own.latents_KX[-1], theirs.latents_KX[-1])
        assert own.source == "references"
    assert len(said["distill"].signal) == 20
    loop._step(0)


def test_the_rollout_source_can_be_the_teacher(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(tmp_path / "out", folder("ddim"), teacher={"model": folder("ddim", 1)})
    tree["rollout"]["source"] = "teacher"
    run, loop = loop_of(tree, tmp_path)
    rollouts, _ = step(loop)
    drawn = run.samplers.of_teachers().rollout([r.prompt for r in rollouts], 0)
    assert all(torch.equal(a.latents_KX, b.latents_KX) for a, b in zip(rollouts, drawn, strict=True))
    assert {r.source for r in rollouts} == {"teacher"}
    assert loop._step(0)["loss"] > 0
    assert loop.state.tokens == 0  # the student drew nothing


# ------------------------------------------------------------------------------------------------- where they come from


def test_image_paths_are_relative_to_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    image = paint(tmp_path / "there" / "a.png", 1)
    paint(tmp_path / "b.png", 2)
    rows = [
        {"prompt": "a", "image": "a.png"},
        {"prompt": "b", "image": str(tmp_path / "b.png")},
        {"prompt": "c"},
    ]
    write_rows(tmp_path / "there" / "p.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    loaded, task = load_image_prompts(PromptsConfig(path="there/p.jsonl"), key="prompts")
    assert task is None
    first, second, third = (image_of(prompt) for prompt in loaded)
    assert first is not None
    assert torch.equal(first, to_tensor(image))
    assert second is not None
    assert third is None


def test_an_image_is_a_path_a_pil_image_or_a_tensor() -> None:
    image = Image.new("L", (5, 7), 255)
    shown = image_of(Prompt(id="a", text="a", data={"image": image}))
    assert shown is not None
    assert shown.shape == (3, 7, 5)
    assert (shown == 1).all()
    given = torch.zeros(3, 4, 4)
    assert image_of(Prompt(id="a", text="a", data={"image": given})) is given
    with pytest.raises(DataError, match="'image' of prompt 'a' is a dict"):
        image_of(Prompt(id="a", text="a", data={"image": {}}))


def test_a_dataset_with_images_loads(tmp_path: Path, folder: Any) -> None:
    import datasets

    images = [paint(tmp_path / f"{n}.png", n) for n in range(4)]
    rows = datasets.Dataset.from_list([{"prompt": f"red {n}", "image": str(tmp_path / f"{n}.png")} for n in range(4)])
    rows.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "data")
    loaded, _ = load_image_prompts(PromptsConfig(dataset=str(tmp_path / "data")), key="prompts")
    assert len(loaded) == 4
    for prompt, image in zip(loaded, images, strict=True):
        shown = image_of(prompt)
        assert shown is not None
        assert torch.equal(shown, to_tensor(image))


def test_a_mix_alternates_its_sources(tmp_path: Path) -> None:
    a, b = (write_rows(tmp_path / f"{n}.jsonl", [{"prompt": f"{n}{i}"} for i in range(2)]) for n in "ab")
    config = PromptsConfig.model_validate([{"path": a, "domain": "first"}, {"path": b}])
    loaded, _ = load_image_prompts(config, key="prompts")
    assert [(p.text, p.domain) for p in loaded] == [
        ("a0", "first"),
        ("b0", "default"),
        ("a1", "first"),
        ("b1", "default"),
    ]
    assert len({p.id for p in loaded}) == 4


def test_pixels_and_tensors_convert_back(tmp_path: Path) -> None:
    image = paint(tmp_path / "a.png", 3)
    image = to_tensor(image)
    save(image, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as again:
        assert torch.equal(to_tensor(again), image)
    outside = to_pixels(torch.tensor([-3.0, 3.0, float("nan")]).view(3, 1, 1))
    assert outside.tolist() == [[[0, 255, 128]]]
    sheet = grid([[image, image], [image]], scale=2, gap=1)
    assert sheet.size == (2 * 17 + 1, 2 * 17 + 1)
