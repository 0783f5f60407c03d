"""What cannot work is refused before any step, in a sentence that names the key and the mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import opd
from opd.config.read import read
from opd.errors import ConfigError, DataError, ModelError, OpdError
from support.models import make_model
from support.tiny_pipelines import prompt_rows, run_tree, sd, write_rows

# ---------------------------------------------------------------------------------------------- from the run file alone

TREE = {"family": "diffusion", "student": "s", "prompts": {"path": "p.jsonl"}, "out": "o"}
TAUGHT = {**TREE, "teacher": {"weights": "model", "model": "t"}}
PICTURES = {**TREE, "loss": {"signal": "image", "divergence": "velocity"}, "rollout": {"policy": "images"}}
REWARDED = {**TREE, "loss": {"signal": "reward"}, "rollout": {"noise": 0.7, "samples": 4}}


@pytest.mark.parametrize("tree", [TAUGHT, PICTURES, REWARDED])
def test_these_are_accepted_and_survive_being_written(tree: dict[str, Any]) -> None:
    config = read(tree)
    assert read(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("tree", "overrides", "words"),
    [
        (TAUGHT, {"family": "difusion"}, ["'family' is 'difusion'", "language and diffusion"]),
        (TAUGHT, {"rollout.temperature": 1}, ["unknown key 'rollout.temperature'"]),
        (TAUGHT, {"loss.divergnce": "x0"}, ["did you mean 'loss.divergence'"]),
        (TAUGHT, {"rollout.policy": "answers"}, ["rollout.policy", "'answers'", "'images'"]),
        (TAUGHT, {"rollout.sigmas": [1.0, 0.5]}, ["sigmas has 2 noise levels, and steps is 10; make them equal"]),
        (TAUGHT, {"rollout.renoise": True, "rollout.noise": 0.7}, ["renoise", "leave noise out"]),
        (TAUGHT, {"rollout.source": "teacher"}, ["policy is student", "set policy=images"]),
        (TAUGHT, {"rollout.guidance": 0.5}, ["rollout.guidance", "0.5", "greater"]),
        (TAUGHT, {"lora.rank": 0}, ["lora.rank", "greater"]),
        (TAUGHT, {"lora.targets": []}, ["lora.targets", "at least 1"]),
        (TREE, {}, ["the student itself", "nothing to learn", "teacher.view=image"]),
        (TREE, {"teacher.weights": "live"}, ["teacher.weights=live", "nothing to learn"]),
        (TREE, {"teacher.weights": "model"}, ["teacher.model has to name one, or teacher.models several"]),
        (TREE, {"teacher.model": "t"}, ["set teacher.weights=model"]),
        (TREE, {"teacher.models": {"a": "t"}}, ["set teacher.weights=model"]),
        (
            TREE,
            {"teacher": {"weights": "model", "model": "t", "models": {"a": "t"}}},
            ["teacher: model and models", "leave one of them out"],
        ),
        (TAUGHT, {"loss.step_weights": [1.0]}, ["1 weights for rollout.steps=10", "make them equal"]),
        (TAUGHT, {"loss.step_weights": [0.0] * 10}, ["loss.step_weights", "one above"]),
        (TAUGHT, {"loss.step_weights": [-1.0] + [1.0] * 9}, ["no weight below 0"]),
        (TAUGHT, {"loss.signal": "image"}, ["a noised image is its own target", "set both"]),
        (TAUGHT, {"rollout.policy": "images"}, ["a noised image is its own target", "set both"]),
        (PICTURES, {"loss.divergence": "transition"}, ["noised images make none; set velocity or x0"]),
        (PICTURES, {"loss.step_weights": [1.0] * 10}, ["noised images have no steps; leave it out"]),
        (PICTURES, {"rollout.source": "teacher"}, ["a teacher that draws needs teacher.weights=model"]),
        (PICTURES, {"teacher.view": "image"}, ["loss.signal=image asks no teacher; leave teacher out"]),
        (PICTURES, {"loss.outcome": 0.1}, ["loss.outcome", "rollout.noise=0"]),
        (
            PICTURES,
            {"loss.outcome": 0.1, "rollout.noise": 0.7, "rollout.samples": 2},
            ["loss.outcome", "set rollout.policy=student"],
        ),
        (PICTURES, {"loss.reward_gradient": 0.1}, ["loss.reward_gradient", "set rollout.policy=student"]),
        (TREE, {"teacher.weights": "ema", "rollout.policy": "teacher"}, ["a teacher that draws"]),
        (TAUGHT, {"loss.divergence": "transition_kl"}, ["loss.divergence=transition_kl", "rollout.noise=0 has none"]),
        (REWARDED, {"rollout.noise": 0}, ["loss.signal=reward", "rollout.noise=0 has none; set it, say to 0.7"]),
        (REWARDED, {"rollout.samples": 1}, ["compares trajectories of one prompt", "2 or more"]),
        (REWARDED, {"teacher.guidance": 2}, ["loss.signal=reward asks no teacher; leave teacher out"]),
        (TAUGHT, {"loss.reward_steps": 11}, ["loss.reward_steps=11", "rollout.steps=10"]),
        (
            TAUGHT,
            {"loss.reward_gradient": 0.1, "loss.step_weights": [1.0] * 9 + [0.0]},
            ["loss.reward_gradient", "loss.step_weights", "loss.reward_steps"],
        ),
        (TAUGHT, {"optimizer.extrapolate": {}}, ["optimizer.extrapolate", "not there for diffusion; leave it out"]),
        (TAUGHT, {"guards.recover": {}}, ["guards.recover", "not there for diffusion; leave it out"]),
        (TAUGHT, {"report.prompts": 0}, ["report.prompts", "greater"]),
    ],
)
def test_impossible_run_files(tree: dict[str, Any], overrides: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        read(tree, overrides)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------- from what the files name


def refused(tree: dict[str, Any], error: type[OpdError], match: str) -> None:
    """In one sentence, leaving nothing behind; the doctor prepares a run in the same way."""
    with pytest.raises(error, match=match) as caught:
        opd.train(tree)
    assert "\n" not in str(caught.value)
    assert not Path(tree["out"]).exists()


def test_a_text_model_and_an_absent_one_are_no_pipelines(tmp_path: Path, folder: Any) -> None:
    text = make_model(0)
    text.model.save_pretrained(tmp_path / "text")
    text.tokenizer.save_pretrained(tmp_path / "text")
    for student in (str(tmp_path / "text"), "/nowhere"):
        tree = run_tree(tmp_path / "out", student, teacher={"model": folder("sd3")})
        refused(tree, ModelError, r"^student: cannot load .*model_index.json and the pipeline's parts")
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"model": str(tmp_path / "text")})
    refused(tree, ModelError, r"^teacher.model: cannot load")


def test_a_pipeline_of_an_unknown_kind(tmp_path: Path, folder: Any) -> None:
    from diffusers import DDIMScheduler, LDMPipeline

    from support.tiny_pipelines import autoencoder, unet

    LDMPipeline(autoencoder(), unet(None), DDIMScheduler()).save_pretrained(tmp_path / "ldm")
    tree = run_tree(tmp_path / "out", str(tmp_path / "ldm"), teacher={"model": folder("sd3")})
    refused(tree, ModelError, r"^student: .* is a LDMPipeline; known are StableDiffusion3Pipeline, ")


def test_a_scheduler_without_a_noise_schedule(tmp_path: Path, folder: Any) -> None:
    from diffusers import DPMSolverMultistepScheduler

    sd(DPMSolverMultistepScheduler()).save_pretrained(tmp_path / "dpm")
    tree = run_tree(tmp_path / "out", str(tmp_path / "dpm"), teacher={"weights": "frozen", "guidance": 2.0})
    refused(tree, ConfigError, r"^scheduler: the steps of DPMSolverMultistepScheduler .*load the pipeline with")


@pytest.mark.parametrize(
    ("kind", "changes", "overrides", "error", "match"),
    [
        ("ddim", {"clip_sample": True}, {}, ConfigError, r"^scheduler: clip_sample clips .*set clip_sample=False"),
        ("ddim", {"thresholding": True}, {}, ConfigError, r"^scheduler: thresholding clips"),
        ("ddpm", {"variance_type": "learned_range"}, {}, ConfigError, r"^scheduler: variance_type learned_range"),
        ("ddim", {}, {"rollout.noise": 1.5}, ConfigError, r"^rollout.noise: 1.5 is eta of DDIM, .* at most 1"),
        ("ddim", {}, {"rollout.steps": 2000}, ConfigError, r"^rollout.steps: 2000"),
        ("ddim", {}, {"rollout.sigmas": [1.0, 0.6, 0.3]}, ConfigError, r"^rollout.sigmas: .* set it to scheduler"),
        ("sd3", {}, {"rollout.sigmas": [1.0, 0.3, 0.6]}, ConfigError, r"^rollout.sigmas: .* fall from 1"),
        ("ddim", {}, {"rollout.guidance": 2.0}, ModelError, r"^rollout.guidance=2: .*; set it to 1"),
        ("ddim", {}, {"teacher.guidance": 2.0}, ModelError, r"^teacher.guidance=2: .*; set it to 1"),
        ("ddpm", {}, {"rollout.guidance": 2.0}, ModelError, r"^rollout.guidance=2: .*; set it to 1"),
        ("sd", {}, {"teacher.view": "image"}, ModelError, r"^teacher.view=image: .* or set teacher.view=plain"),
        ("ddim", {}, {"teacher.view": "image"}, ModelError, r"^teacher.view=image: "),
        ("sd3", {"image_encoder": False}, {"teacher.view": "image"}, ModelError, r"^teacher.view=image: "),
        ("sd3", {}, {"teacher.view": "image"}, DataError, r"^prompts: not one of 8 has a image, and teacher.view"),
        ("sd3", {}, {"rollout.batch": 9}, DataError, r"8 prompts.* fewer than one batch|fewer than one batch"),
        (
            "sd3",
            {},
            {"loss.reward_gradient": 0.1},
            ConfigError,
            r"^rewards need prompts whose images a task judges; give prompts=\{task: …\}",
        ),
        (
            "ddim",
            {},
            {"rollout.noise": 1.0, "loss.divergence": "transition_kl"},
            ConfigError,
            r"^rollout.noise: step 3 of 3 adds none, .*; leave this step out, with a 0 in loss.step_weights",
        ),
        (
            "sd3",
            {},
            {"rollout.renoise": True, "loss.divergence": "transition_kl"},
            ConfigError,
            r"^rollout.noise: step 3 of 3 adds none",
        ),
    ],
)
def test_impossible_runs(
    tmp_path: Path,
    folder: Any,
    kind: str,
    changes: dict[str, Any],
    overrides: dict[str, Any],
    error: type[OpdError],
    match: str,
) -> None:
    tree = run_tree(tmp_path / "out", folder(kind, **changes), teacher={"model": folder(kind, 1, **changes)})
    refused(read(tree, overrides).model_dump(mode="json"), error, match)


def test_a_teacher_of_other_latents(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"model": folder("sd3", 1, size=4)})
    refused(tree, ModelError, r"^teacher.model: .* latents of \[3, 4, 4\] and the student of \[3, 8, 8\]")
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"models": {"default": folder("sd")}})
    refused(tree, ModelError, r"^teacher.models.default: .* latents of \[4, 8, 8\]")


def test_a_domain_that_nobody_reads(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"models": {"digits": folder("sd3", 1)}})
    refused(tree, ConfigError, r"^teacher.models: prompt 'p0' is of domain 'default', and the teachers read digits")
    tree["prompts"]["domain"] = "digits"
    tree["eval"] = {"prompts": {"path": tree["prompts"]["path"], "limit": 2}}
    refused(tree, ConfigError, r"^teacher.models: prompt 'p0' is of domain 'default'")


def test_prompts_need_the_labels_that_a_pipeline_goes_by(tmp_path: Path, folder: Any) -> None:
    """Whichever of them lacks it, and whatever stands there instead."""
    for wrong in ("1", 4, None, [1], True):
        rows = prompt_rows()
        rows[5]["label"] = wrong
        path = write_rows(tmp_path / "p.jsonl", rows)
        tree = run_tree(tmp_path / "out", folder("ddim"), teacher={"model": folder("ddim", 1)}, prompts={"path": path})
        refused(tree, DataError, r"^prompts: prompt 'p5' has label .* classes 0 to 3; give every prompt such a 'label'")


def test_images_that_cannot_be_read(tmp_path: Path, folder: Any) -> None:
    (tmp_path / "broken.png").write_bytes(b"rubbish")
    for image, match in (
        ("absent.png", r"^prompts: cannot read 'image' of prompt 'p0', '.*absent.png'"),
        ("broken.png", r"^prompts: cannot read 'image' of prompt 'p0', '.*broken.png'"),
        (7, r"^prompts: 'image' of prompt 'p0' is a int; give a file's path or a image"),
    ):
        rows = [{**row, "image": image} for row in prompt_rows()]
        path = write_rows(tmp_path / "p.jsonl", rows)
        tree = run_tree(
            tmp_path / "out", folder("sd3"), teacher={"weights": "frozen", "view": "image"}, prompts={"path": path}
        )
        refused(tree, DataError, match)


@pytest.mark.parametrize(
    ("task", "match"),
    [
        ("pictres", r"^prompts.task: there is no task 'pictres' for images; give images or module:name"),
        ("nowhere:Task", r"^prompts.task: 'nowhere:Task' cannot be imported"),
        ("pathlib:Sketches", r"^prompts.task: 'pathlib:Sketches' cannot be imported"),
        ("fractions:Fraction", r"^prompts.task: 'fractions:Fraction' has no prompts and no right and no reward"),
    ],
)
def test_tasks_that_are_none(tmp_path: Path, folder: Any, task: str, match: str) -> None:
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"model": folder("sd3", 1)}, prompts={"task": task})
    refused(tree, ConfigError, match)
