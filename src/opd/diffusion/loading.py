"""Loading the models that a denoising run names."""

from __future__ import annotations

from dataclasses import replace

import torch

from opd.axes.base import Objects
from opd.config.diffusion import DiffusionConfig
from opd.diffusion.models import DenoisingModel, is_adapter, load, of_pipeline, with_adapter
from opd.models.language import device_named, set_threads

SINGLE = "teacher"
"""Name of the model of ``teacher.model``."""


def load_student(config: DiffusionConfig, objects: Objects) -> DenoisingModel:
    """The student, with its precision, threads and trainable weights set."""
    given, tokens = objects.student, config.text_tokens
    if given is not None:
        student = of_pipeline(given, source="given from Python", key="student", text_tokens=tokens)
    else:
        student = load(config.student, key="student", text_tokens=tokens, device=device_named(config.device))
    student = replace(student, autocast=torch.bfloat16 if config.dtype == "bfloat16" else None)
    set_threads(config.threads, student.model)
    student.model.requires_grad_(config.lora is None)  # before any copy: copies share the weights that do not train
    student.check_guidance(config.rollout.guidance, "rollout.guidance")
    return student


def load_teachers(config: DiffusionConfig, student: DenoisingModel, objects: Objects) -> dict[str, DenoisingModel]:
    """The models of ``teacher.model`` or ``teacher.models``; none for a self-teacher."""
    if not config.teacher.is_model:
        return {}
    tokens = config.text_tokens
    if objects.teacher is not None:
        given = of_pipeline(objects.teacher, source="given from Python", key="teacher.model", text_tokens=tokens)
        return {SINGLE: replace(given, autocast=student.autocast)}
    several = config.teacher.models
    sources = {name: one.model for name, one in several.items()} if several else {SINGLE: config.teacher.model or ""}
    loaded = {}
    for name, source in sources.items():
        key = f"teacher.models.{name}" if several else "teacher.model"
        if is_adapter(source):
            loaded[name] = with_adapter(student, source, key=key)
        else:
            model = load(source, key=key, text_tokens=tokens, device=device_named(config.device))
            loaded[name] = replace(model, autocast=student.autocast)
    return loaded
