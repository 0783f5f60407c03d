"""The student of a language run: all of its weights, a new adapter on a frozen base, or the adapter that it came as."""

from __future__ import annotations

import dataclasses

import torch

from opd.axes.base import Objects
from opd.config.run import RunConfig
from opd.models.adapters import adapted, check_agrees, new_adapter
from opd.models.bases import Bases
from opd.models.bundled import resolve
from opd.models.folders import base_of
from opd.models.language import LanguageModel, freeze
from opd.models.loading import accept, load
from opd.models.weights import shared_copy


def load_student(
    config: RunConfig, objects: Objects, bases: Bases, *, device: str
) -> tuple[LanguageModel, LanguageModel | None]:
    """The student, and with a new adapter its frozen base: the initial student without the adapter's products.

    A frozen base is in the run's ``dtype``; weights that train are float32.

    Args:
        bases: gets the base, for teachers that are adapters of the same.

    Raises:
        OpdError: it cannot be loaded or adapted.
    """
    path = resolve(config.student)
    student = objects.student and accept(objects.student, key="student", trains=config.lora is None)
    if student is None:
        frozen = config.lora is not None or base_of(path) != path
        dtype = config.dtype if frozen else "float32"
        student = load(config.student, key="student", dtype=dtype, device=device, bases=bases, trainable=True)
    student = dataclasses.replace(
        student,
        autocast=torch.bfloat16 if config.dtype == "bfloat16" else None,
        stored=getattr(torch, config.save.dtype) if config.save.dtype else student.stored,
    )
    if config.lora is None:
        return student, None
    student = dataclasses.replace(student, merge=config.lora.merge)
    settings = config.lora.model_dump(exclude={"merge"})
    if adapted(student.model):
        check_agrees(student.model, **settings)
        return student, None
    freeze(student.model)
    base = dataclasses.replace(student, model=shared_copy(student.model))
    if objects.student is None:
        bases.hold(path, base.model)
    torch.manual_seed(config.seed)
    return dataclasses.replace(student, model=new_adapter(student.model, **settings)), base
