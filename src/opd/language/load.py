"""Loading what a language run names: student, teachers and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opd.axes.base import Objects
from opd.config.run import RunConfig
from opd.data.curriculum import Curriculum, Uniform
from opd.distributed import current, in_parts
from opd.errors import ConfigError
from opd.experimental.curriculum import Adaptive, Interest
from opd.language.checks import check_prompts, check_room
from opd.language.context import LanguageContext
from opd.language.prompts import load_prompts_of
from opd.language.shard import check_shard
from opd.language.student import load_student
from opd.language.vocabulary import share_vocabulary
from opd.models.adapters import adapted
from opd.models.attention import use_attention
from opd.models.bases import Bases
from opd.models.chat import Chat
from opd.models.compiled import compile_blocks
from opd.models.language import LanguageModel, device_named, set_threads
from opd.models.loading import accept, load
from opd.models.pool import ModelPool
from opd.servers.model import load_served
from opd.teachers.by_domain import check_covered
from opd.types import Prompt


def load_run(config: RunConfig, objects: Objects) -> LanguageContext:
    """Load everything a run names and check that it fits together.

    Raises:
        OpdError: the first problem, as one sentence.
    """
    device = device_named(config.device)
    config.loss.signal.check_divergence(config.loss.divergence.resolve(objects.divergence))
    bases = Bases()
    student, base = load_student(config, objects, bases, device=device)
    set_threads(config.threads, student.model)
    chat = Chat(student.tokenizer)
    loaded = load_prompts_of(config, objects, chat, device=device)
    prompts = loaded.training.prompts
    check_prompts(config, prompts, loaded.task)
    run = LanguageContext(
        config=config,
        objects=objects,
        student=student,
        base=base,
        chat=chat,
        prompts=prompts,
        curriculum=_curriculum(config, prompts),
        task=loaded.task,
        held_out=loaded.held_out.prompts,
        held_out_task=loaded.held_out_task,
        training=loaded.training,
        notes=loaded.notes,
        shares=_shares(config, prompts),
        device=device,
        **_teachers(config, objects, student, bases, device),
    )
    run = share_vocabulary(run, loaded.held_out)
    models = {"student": student, **({"the student's base": base} if base else {}), **run.others()}
    here = {id(model.model): (model, key) for key, model in models.items() if not model.is_served}
    for model, key in here.values():
        if config.attention:
            use_attention(model, config.attention, key)
        if config.compile:
            compile_blocks(model, key)
    check_room(run, loaded.held_out)
    return run


def _curriculum(config: RunConfig, prompts: list[Prompt]) -> Curriculum:
    rollout = config.rollout
    trained = prompts[: rollout.source.first_prompts]
    size = {"batch": rollout.prompts_per_step, "samples": rollout.rollouts_per_prompt, "seed": config.seed}
    adaptive = config.experimental.curriculum
    if adaptive is None:
        return Uniform(trained, **size)
    return Adaptive(trained, **size, interest=Interest(**adaptive.model_dump()))


def _shares(config: RunConfig, prompts: Sequence[Prompt]) -> dict[str, dict[str, float]]:
    """By domain and name, each teacher's weight. A single teacher behind a gate teaches every domain."""
    teacher = config.teacher
    if teacher.models:
        check_covered(teacher.shares, prompts)
        return teacher.shares
    if teacher.gate:
        return {domain: {"teacher": 1.0} for domain in sorted({prompt.domain for prompt in prompts})}
    return {}


def _teachers(config: RunConfig, objects: Objects, student: LanguageModel, bases: Bases, device: str) -> dict[str, Any]:
    """The teacher's model, or the pool of several; nothing for a self-teacher."""
    teacher, given = config.teacher, objects.teacher
    if not teacher.is_model:
        return {}
    if given is not None:
        _check_given(config, given, student)
    where: dict[str, Any] = {"dtype": config.dtype, "device": device}
    size = current().size
    where["parts"] = in_parts(device, size, check_shard(config, size, adapter=adapted(student.model)))
    where["bases"] = Bases(teacher.quantize) if teacher.quantize else bases
    if teacher.models or teacher.gate:
        named = {name: one.model for name, one in (teacher.models or {}).items()}
        served = {
            name: load_served(one.model, one.served, key=f"teacher.models.{name}", dtype=config.dtype, device=device)
            for name, one in (teacher.models or {}).items()
            if one.served
        }
        sources = named or {"teacher": teacher.model or ""}
        return {"pool": ModelPool(sources, key="teacher.models", **where, served=served)}
    key = "teacher.model"
    if teacher.served:
        model: LanguageModel = load_served(
            teacher.model or "", teacher.served, key="teacher", dtype=config.dtype, device=device
        )
    else:
        model = accept(given, key=key) if given else load(teacher.model or "", key=key, **where)
    model.model.requires_grad_(False)
    return {"teacher_model": model}


def _check_given(config: RunConfig, given: LanguageModel, student: LanguageModel) -> None:
    """Refuse a teacher from Python where the run file's settings cannot apply to it.

    Raises:
        ConfigError: they cannot, or it is the student itself.
    """
    settings, name_it = config.teacher, "name its folder in teacher.model"
    if settings.quantize:
        raise ConfigError(
            f"teacher.quantize: a teacher given from Python is taken as it is. Fix: give it quantised, or {name_it}"
        )
    if settings.is_served:
        raise ConfigError(f"teacher.served: a teacher given from Python is read here. Fix: {name_it}")
    if settings.models or settings.gate:
        raise ConfigError(f"teacher.gate: a teacher given from Python is not measured. Fix: {name_it}")
    if given.model is student.model:
        raise ConfigError(
            "teacher: it is the student's own object, which changes while it trains. Fix: give a copy, or set "
            "teacher.weights=frozen"
        )
