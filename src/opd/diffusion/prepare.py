"""What a denoising run names, loaded, and whether it fits together. What can be refused is refused here."""

from __future__ import annotations

from dataclasses import replace

import torch

from opd.axes.base import Objects
from opd.config.diffusion import DiffusionConfig
from opd.data.prompts import given_prompts
from opd.diffusion.build import ONE, Denoising
from opd.diffusion.data import load_image_prompts
from opd.diffusion.images import image_of
from opd.diffusion.models import DenoisingModel, add_adapter, is_adapter, load, of_pipeline, with_adapter
from opd.diffusion.sampler import noising
from opd.diffusion.schedules import coefficient_K, convert, no_noise
from opd.diffusion.types import ImageTask
from opd.errors import ConfigError, DataError, ModelError
from opd.language.load import check_covered
from opd.models.language import device_named, set_threads
from opd.types import Prompt


def prepare(config: DiffusionConfig, objects: Objects) -> Denoising:
    """Load everything a run names and check that it fits together.

    Raises:
        OpdError: the first thing that does not, in one sentence.
    """
    device = device_named(config.device)
    if objects.student is not None:
        student = of_pipeline(
            objects.student, source="given from Python", key="student", text_tokens=config.text_tokens
        )
    else:
        student = load(config.student, key="student", text_tokens=config.text_tokens, device=device)
    student = replace(student, autocast=torch.bfloat16 if config.dtype == "bfloat16" else None)
    set_threads(config.threads, student.model)
    student.model.requires_grad_(config.lora is None)  # before any copy is made: what does not train is shared
    student.check_guidance(config.rollout.guidance, "rollout.guidance")
    if objects.prompts is not None:
        prompts, task = given_prompts(objects.prompts, chat=False)[0], None
    else:
        prompts, task = load_image_prompts(config.prompts, key="prompts")
    held_out: list[Prompt] = []
    held_out_task: ImageTask | None = None
    if config.eval.prompts:
        held_out, held_out_task = load_image_prompts(config.eval.prompts, key="eval.prompts")
    task, held_out_task = objects.task or task, objects.task or held_out_task
    run = Denoising(
        config=config,
        student=student,
        noising=noising(student) if config.rollout.policy == "images" else None,
        prompts=prompts,
        task=task,
        held_out=held_out,
        held_out_task=held_out_task,
        teachers=_teachers(config, student, objects, device),
    )
    if config.lora:
        torch.manual_seed(config.seed)
        add_adapter(student, config.lora)
    _check_teachers(run)
    _check_prompts(run)
    _check_steps(run)
    return run


def _teachers(
    config: DiffusionConfig, student: DenoisingModel, objects: Objects, device: str
) -> dict[str, DenoisingModel]:
    if config.teacher.weights != "model":
        return {}
    if objects.teacher is not None:
        given = of_pipeline(
            objects.teacher, source="given from Python", key="teacher.model", text_tokens=config.text_tokens
        )
        return {ONE: replace(given, autocast=student.autocast)}
    several = config.teacher.models
    sources = {name: one.model for name, one in several.items()} if several else {ONE: config.teacher.model or ""}
    loaded = {}
    for name, source in sources.items():
        key = f"teacher.models.{name}" if several else "teacher.model"
        if is_adapter(source):
            loaded[name] = with_adapter(student, source, key=key)
        else:
            model = load(source, key=key, text_tokens=config.text_tokens, device=device)
            loaded[name] = replace(model, autocast=student.autocast)
    return loaded


def _check_teachers(run: Denoising) -> None:
    config = run.config
    if config.teacher.models:
        check_covered(config, [*run.prompts, *run.held_out])  # the teachers draw and are measured there too
    named = run.teachers or {ONE: run.student}
    for name, model in named.items():
        key = f"teacher.models.{name}" if config.teacher.models else "teacher.model"
        model.check_guidance(config.teacher.guidance, "teacher.guidance")
        if config.teacher.view == "image":
            model.check_takes_images("teacher.view=image")
        if model.shape != run.student.shape:
            raise ModelError(
                f"{key}: '{model.source}' denoises latents of {list(model.shape)} and the student of "
                f"{list(run.student.shape)}, so it cannot read the student's; take a teacher of the same latents"
            )
        if config.loss.reads_teacher and model.pipeline is not run.student.pipeline:
            everywhere = torch.arange(run.schedule.num_steps)
            nothing = torch.zeros(run.schedule.num_steps, 1)
            try:
                convert(nothing, nothing, everywhere, run.schedule_for(model), run.schedule)
            except ModelError as error:
                raise ModelError(f"{key}: '{model.source}': {error}") from None


def _check_steps(run: Denoising) -> None:
    """Every sampler that the run will use exists, and its steps have what the loss needs of them."""
    config, loss = run.config, run.config.loss
    run.sampling(held_out=True)
    if config.rollout.policy == "teacher" or config.rollout.source == "teacher":
        run.teacher_source()
    if loss.signal != "reward" or loss.anchor:
        coefficient_K(run.schedule, loss.divergence, supervised_K=run.counts_K)
    silent_K = (run.schedule.std_K == 0) & run.counts_K
    if (loss.signal == "reward" or loss.outcome) and bool(silent_K.any()):
        raise no_noise(silent_K, "its transition has no density")


def _check_prompts(run: Denoising) -> None:
    config = run.config
    run.curriculum.step(0)  # there is a batch of them
    rewarded = config.loss.signal == "reward" or config.loss.outcome or config.loss.reward_gradient
    if rewarded and run.task is None:
        raise ConfigError("rewards need prompts whose images a task judges; give prompts={task: …}")
    by_text = "text_encoder" in run.student.pipeline.components  # of which one prompt is as good as another
    run.student.encode(run.prompts[:1] if by_text else [*run.prompts, *run.held_out])
    needs = config.teacher.view == "image" or (config.rollout.policy == "images" and config.rollout.source == "prompts")
    if needs and all(image_of(prompt) is None for prompt in run.prompts):
        key = "teacher.view=image" if config.teacher.view == "image" else "rollout.policy=images"
        raise DataError(f"prompts: not one of {len(run.prompts)} has a image, and {key} needs it; give 'image' columns")
