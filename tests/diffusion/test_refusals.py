"""Invalid runs are refused before the first step, in one sentence with the key and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import opd
from opd.config.read import read
from opd.data.answers import AnswerTask
from opd.errors import ConfigError, DataError, ModelError, OpdError
from support.models import make_model
from support.tiny_pipelines import prompt_rows, run_tree, sd, write_rows

# ---------------------------------------------------------------------------------------------- from the run file alone

TREE = {"family": "diffusion", "student": "s", "prompts": {"path": "p.jsonl"}, "out": "o"}
TAUGHT = {**TREE, "teacher": {"model": "t"}}
IMAGES = {**TREE, "loss": {"signal": "image", "divergence": "velocity"}, "rollout": {"source": "images"}}
REWARDED = {**TREE, "loss": {"signal": "reward"}, "rollout": {"noise": 0.7, "rollouts_per_prompt": 4}}


@pytest.mark.parametrize("tree", [TAUGHT, IMAGES, REWARDED])
def test_valid_run_files_are_accepted_and_survive_being_written(tree: dict[str, Any]) -> None:
    config = read(tree)
    assert read(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("tree", "overrides", "words"),
    [
        (TAUGHT, {"family": "difusion"}, ["no family 'difusion'", "language or diffusion"]),
        (TAUGHT, {"rollout.temperature": 1}, ["unknown key 'rollout.temperature'"]),
        (TAUGHT, {"loss.divergnce": "x0"}, ["did you mean 'loss.divergence'"]),
        (TAUGHT, {"rollout.source": "answers"}, ["rollout.source", "'answers'", "images"]),
        (
            TAUGHT,
            {"rollout.sigmas": [1.0, 0.5]},
            [
                "rollout.sigmas needs one noise level per step (2 noise levels, rollout.steps=10)",
                "give rollout.sigmas one number",
            ],
        ),
        (TAUGHT, {"rollout.renoise": True, "rollout.noise": 0.7}, ["renoise", "leave rollout.noise out"]),
        (TAUGHT, {"rollout.of": "teacher"}, ["unknown key 'rollout.of'"]),
        (TAUGHT, {"rollout.source": {"type": "student", "of": "teacher"}}, ["unknown key 'rollout.source.of'"]),
        (TAUGHT, {"rollout.guidance": 0.5}, ["rollout.guidance", "0.5", "greater"]),
        (TAUGHT, {"lora.rank": 0}, ["lora.rank", "greater"]),
        (TAUGHT, {"lora.targets": []}, ["lora.targets", "at least 1"]),
        (TREE, {}, ["differs from the student", "nothing to learn", "teacher.view=image"]),
        (TREE, {"teacher.weights": "live"}, ["teacher.weights=live", "nothing to learn"]),
        (TREE, {"teacher.weights": "model"}, ["teacher.weights: 'model'", "teacher.model alone names another model"]),
        (TREE, {"teacher": {"weights": "live", "model": "t"}}, ["teacher.weights=live", "leave one of them out"]),
        (
            TREE,
            {"teacher": {"weights": {"type": "ema"}, "models": {"a": "t"}}},
            ["teacher.weights=ema", "leave one of them out"],
        ),
        (
            TREE,
            {"teacher": {"model": "t", "models": {"a": "t"}}},
            ["teacher.model", "teacher.models", "leave one of them out"],
        ),
        (TAUGHT, {"loss.step_weights": [1.0]}, ["1 weights, rollout.steps=10", "give loss.step_weights one number"]),
        (TAUGHT, {"loss.step_weights": [0.0] * 10}, ["loss.step_weights", "a weight above 0"]),
        (
            TAUGHT,
            {"loss.step_weights": [-1.0] + [1.0] * 9},
            ["loss.step_weights.0", "-1.0", "greater than or equal to 0"],
        ),
        (TAUGHT, {"loss.signal": "image"}, ["loss.signal=image needs noised images", "set both"]),
        (TAUGHT, {"rollout.source": "images"}, ["rollout.source=images needs the clean image as target", "set both"]),
        (
            IMAGES,
            {"loss.divergence": "transition"},
            ["noised images have no steps", "set loss.divergence=velocity or x0"],
        ),
        (
            IMAGES,
            {"loss.step_weights": [1.0] * 10},
            ["loss.step_weights needs the steps of trajectories (rollout.source=images)", "leave it out"],
        ),
        (
            IMAGES,
            {"rollout.source": {"type": "images", "of": "teacher"}},
            ["rollout.source.of=teacher needs a teacher that is a model of its own", "teacher.model"],
        ),
        (IMAGES, {"teacher.view": "image"}, ["teacher needs a signal", "loss.signal=image", "leave teacher out"]),
        (IMAGES, {"loss.reward": 0.1}, ["loss.reward", "rollout.noise=0"]),
        (
            IMAGES,
            {"loss.reward": 0.1, "rollout.noise": 0.7, "rollout.rollouts_per_prompt": 2},
            ["loss.reward", "set rollout.source=student"],
        ),
        (IMAGES, {"loss.reward_gradient": 0.1}, ["loss.reward_gradient", "set rollout.source=student"]),
        (
            TREE,
            {"teacher.weights": "ema", "rollout.source": "teacher"},
            ["rollout.source=teacher", "a model of its own"],
        ),
        (
            TAUGHT,
            {"loss.divergence": "transition_kl"},
            ["loss.divergence=transition_kl", "density at every step (rollout.noise=0)"],
        ),
        (
            REWARDED,
            {"rollout.noise": 0},
            ["loss.signal=reward", "(rollout.noise=0). Fix: set rollout.noise above 0, for instance to 0.7"],
        ),
        (REWARDED, {"rollout.rollouts_per_prompt": 1}, ["several trajectories of each prompt", "2 or more"]),
        (REWARDED, {"teacher.guidance": 2}, ["teacher needs a signal", "loss.signal=reward", "leave teacher out"]),
        (
            TAUGHT,
            {"loss.reward_gradient": {"weight": 0.1, "steps": 11}},
            ["loss.reward_gradient", "11, rollout.steps=10"],
        ),
        (
            TAUGHT,
            {"loss.reward_gradient": 0.1, "loss.step_weights": [1.0] * 9 + [0.0]},
            ["loss.reward_gradient", "loss.step_weights", "raise loss.reward_gradient.steps"],
        ),
        (TAUGHT, {"experimental.extrapolate": {}}, ["unknown key 'experimental'"]),
        (TAUGHT, {"guards.recover": {}}, ["guards.recover needs rollouts of text (family=diffusion)", "leave it out"]),
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
    """Check that a run is refused in one sentence and writes nothing."""
    with pytest.raises(error, match=match) as caught:
        opd.train(tree)
    assert "\n" not in str(caught.value)
    assert not Path(tree["out"]).exists()


def test_a_text_model_and_a_missing_folder_are_refused(tmp_path: Path, folder: Any) -> None:
    text = make_model(0)
    text.model.save_pretrained(tmp_path / "text")
    text.tokenizer.save_pretrained(tmp_path / "text")
    for student in (str(tmp_path / "text"), "/nowhere"):
        tree = run_tree(tmp_path / "out", student, teacher={"model": folder("sd3")})
        refused(tree, ModelError, r"^student: cannot load .*model_index.json and the pipeline's parts")
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"model": str(tmp_path / "text")})
    refused(tree, ModelError, r"^teacher.model: cannot load")


def test_an_unsupported_pipeline_is_refused(tmp_path: Path, folder: Any) -> None:
    from diffusers import DDIMScheduler, LDMPipeline

    from support.tiny_pipelines import autoencoder, unet

    LDMPipeline(autoencoder(), unet(None), DDIMScheduler()).save_pretrained(tmp_path / "ldm")
    tree = run_tree(tmp_path / "out", str(tmp_path / "ldm"), teacher={"model": folder("sd3")})
    refused(tree, ModelError, r"^student: .* is a LDMPipeline. Fix: take one of StableDiffusion3Pipeline, ")


def test_an_unsupported_scheduler_is_refused(tmp_path: Path, folder: Any) -> None:
    from diffusers import DPMSolverMultistepScheduler

    sd(DPMSolverMultistepScheduler(steps_offset=1)).save_pretrained(tmp_path / "dpm")
    tree = run_tree(tmp_path / "out", str(tmp_path / "dpm"), teacher={"weights": "frozen", "guidance": 2.0})
    refused(tree, ConfigError, r"^scheduler: the steps of DPMSolverMultistepScheduler .*Fix: load the pipeline with")


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
        ("ddim", {}, {"rollout.guidance": 2.0}, ModelError, r"^rollout.guidance=2: .*. Fix: set it to 1"),
        ("ddim", {}, {"teacher.guidance": 2.0}, ModelError, r"^teacher.guidance=2: .*. Fix: set it to 1"),
        ("ddpm", {}, {"rollout.guidance": 2.0}, ModelError, r"^rollout.guidance=2: .*. Fix: set it to 1"),
        ("sd", {}, {"teacher.view": "image"}, ModelError, r"^teacher.view=image: .* or set teacher.view=plain"),
        ("ddim", {}, {"teacher.view": "image"}, ModelError, r"^teacher.view=image: "),
        ("sd3", {"image_encoder": False}, {"teacher.view": "image"}, ModelError, r"^teacher.view=image: "),
        (
            "sd3",
            {},
            {"teacher.view": "image"},
            DataError,
            r"^prompts: teacher.view=image needs prompts with an image .got 8",
        ),
        (
            "sd3",
            {},
            {"rollout.prompts_per_step": 9},
            DataError,
            r"8 prompts.* fewer than one batch|fewer than one batch",
        ),
        (
            "sd3",
            {},
            {"loss.reward_gradient": 0.1},
            ConfigError,
            r"^prompts: rewards need a task that judges images .*Fix: give prompts=\{task: …\}",
        ),
        (
            "ddim",
            {},
            {"rollout.noise": 1.0, "loss.divergence": "transition_kl"},
            ConfigError,
            r"^rollout.noise: step 3 of 3 adds none, .*Fix: leave this step out, with a 0 in loss.step_weights",
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


def test_a_task_for_text_is_refused(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"model": folder("sd3", 1)})
    with pytest.raises(ConfigError, match=r"^task: .* has no reward\(\), .*Fix: give an ImageTask"):
        opd.train(tree, task=AnswerTask())


def test_a_teacher_with_other_latents_is_refused(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"model": folder("sd3", 1, size=4)})
    refused(tree, ModelError, r"^teacher.model: .* latents of \[3, 4, 4\] and the student of \[3, 8, 8\]")
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"models": {"default": folder("sd")}})
    refused(tree, ModelError, r"^teacher.models.default: .* latents of \[4, 8, 8\]")


def test_a_domain_without_a_teacher_is_refused(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"models": {"digits": folder("sd3", 1)}})
    refused(tree, ConfigError, r"^teacher.models: no teacher has the domain 'default' of prompt 'p0' .they have digits")
    tree["prompts"]["domain"] = "digits"
    tree["eval"] = {"prompts": {"path": tree["prompts"]["path"], "limit": 2}}
    refused(tree, ConfigError, r"^teacher.models: no teacher has the domain 'default' of prompt 'p0'")


def test_prompts_without_a_valid_label_are_refused(tmp_path: Path, folder: Any) -> None:
    """A single invalid label of any type is found."""
    for wrong in ("1", 4, None, [1], True):
        rows = prompt_rows()
        rows[5]["label"] = wrong
        path = write_rows(tmp_path / "p.jsonl", rows)
        tree = run_tree(tmp_path / "out", folder("ddim"), teacher={"model": folder("ddim", 1)}, prompts={"path": path})
        refused(
            tree, DataError, r"^prompts: prompt 'p5' has label .* classes 0 to 3. Fix: give every prompt such a 'label'"
        )


def test_unreadable_images_are_refused(tmp_path: Path, folder: Any) -> None:
    (tmp_path / "broken.png").write_bytes(b"rubbish")
    for image, match in (
        ("absent.png", r"^prompts: cannot read 'image' of prompt 'p0', '.*absent.png'"),
        ("broken.png", r"^prompts: cannot read 'image' of prompt 'p0', '.*broken.png'"),
        (7, r"^prompts: 'image' of prompt 'p0' is a int. Fix: give a file's path or an image"),
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
        (
            "pictres",
            r"^prompts.task: there is no task 'pictres'. Fix: give images, math, search, strings, tools or",
        ),
        ("nowhere:Task", r"^prompts.task: 'nowhere:Task' cannot be imported"),
        ("pathlib:Sketches", r"^prompts.task: 'pathlib:Sketches' cannot be imported"),
        ("fractions:Fraction", r"^prompts.task: 'fractions:Fraction' has no prompts and no right and no reward"),
    ],
)
def test_unknown_tasks_are_refused(tmp_path: Path, folder: Any, task: str, match: str) -> None:
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"model": folder("sd3", 1)}, prompts={"task": task})
    refused(tree, ConfigError, match)
