"""Checks of a loaded denoising run: what does not fit is refused before the first step."""

from __future__ import annotations

import torch

from opd.diffusion.context import DenoisingContext
from opd.diffusion.divergences import coefficient_K, convert, no_noise
from opd.diffusion.images import image_of
from opd.errors import ConfigError, DataError, ModelError
from opd.teachers.by_domain import check_covered


def check(run: DenoisingContext) -> None:
    """Check that teachers, prompts and noise schedules fit the student and the loss.

    Raises:
        OpdError: the first problem, as one sentence.
    """
    _check_teachers(run)
    _check_prompts(run)
    _check_steps(run)


def _check_teachers(run: DenoisingContext) -> None:
    config, schedule = run.config, run.samplers.schedule
    if config.teacher.models:
        check_covered(config.teacher.shares, [*run.prompts, *run.held_out])  # teachers are measured on held-out prompts
    for name, model in (run.teachers or {"": run.student}).items():
        key = f"teacher.models.{name}" if config.teacher.models else "teacher.model"
        model.check_guidance(config.teacher.guidance, "teacher.guidance")
        if config.teacher.view.type == "image":
            model.check_takes_images("teacher.view=image")
        if model.shape != run.student.shape:
            raise ModelError(
                f"{key}: '{model.source}' denoises latents of {list(model.shape)} and the student of "
                f"{list(run.student.shape)}. Fix: take a teacher with the student's latents"
            )
        if config.loss.signal.reads_teacher and model.pipeline is not run.student.pipeline:
            everywhere = torch.arange(schedule.num_steps)
            nothing = torch.zeros(schedule.num_steps, 1)
            try:
                convert(nothing, nothing, everywhere, run.samplers.schedule_for(model), schedule)
            except ModelError as error:
                raise ModelError(f"{key}: '{model.source}': {error}") from None


def _check_prompts(run: DenoisingContext) -> None:
    config, loss = run.config, run.config.loss
    run.curriculum.step(0)  # raises if there are fewer prompts than a step needs
    if (loss.signal.type == "reward" or loss.reward or loss.reward_gradient) and run.task is None:
        raise ConfigError("prompts: rewards need a task that judges images (got none). Fix: give prompts={task: …}")
    by_text = "text_encoder" in run.student.pipeline.components  # a text encoder takes every prompt; labels may lack
    run.student.encode(run.prompts[:1] if by_text else [*run.prompts, *run.held_out])
    source = config.rollout.source
    needs = {
        "teacher.view=image": config.teacher.view.type == "image",
        "rollout.source=images": source.type == "images" and not source.uses_teacher,
    }
    key = next((key for key, holds in needs.items() if holds), None)
    if key and all(image_of(prompt) is None for prompt in run.prompts):
        raise DataError(
            f"prompts: {key} needs prompts with an image (got {len(run.prompts)} without). Fix: give an 'image' column"
        )


def _check_steps(run: DenoisingContext) -> None:
    """Every sampler of the run exists, and its steps have the noise that the loss needs."""
    config, loss, samplers = run.config, run.config.loss, run.samplers
    samplers.of_student(held_out=True)
    if config.rollout.source.uses_teacher:
        samplers.of_teachers()
    if loss.signal.type != "reward" or loss.anchor:
        coefficient_K(samplers.schedule, loss.divergence, supervised_K=samplers.trained_K)
    silent_K = (samplers.schedule.std_K == 0) & samplers.trained_K
    if (loss.signal.type == "reward" or loss.reward) and bool(silent_K.any()):
        raise no_noise(silent_K, "its transition has no density")
