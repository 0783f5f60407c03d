"""Loading what a language run names, and the checks that need it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opd.axes.base import Objects
from opd.config.diffusion import DiffusionConfig
from opd.config.run import RunConfig
from opd.data.curriculum import Curriculum, Uniform
from opd.errors import ConfigError, DataError, ModelError
from opd.experimental.curriculum import Adaptive, Interest
from opd.language.context import LanguageContext
from opd.language.lengths import Rendered
from opd.language.prompts import load_prompts_of
from opd.language.student import load_student
from opd.models.attention import use_attention
from opd.models.bases import Bases
from opd.models.chat import Chat
from opd.models.language import LanguageModel, check_vocabulary, device_named, set_threads
from opd.models.loading import accept, load
from opd.models.pool import ModelPool
from opd.types import Prompt, Task


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
    _check_data(config, prompts, loaded.task)
    _check_comparison(config)
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
    if config.attention:
        for key, model in {"student": student, "the student's base": base or student, **run.others()}.items():
            use_attention(model, config.attention, key)
    _check_lengths(run, loaded.held_out)
    _check_view_lengths(run)
    return run


def _curriculum(config: RunConfig, prompts: list[Prompt]) -> Curriculum:
    rollout = config.rollout
    trained = prompts[: rollout.source.first_prompts]
    size = {"batch": rollout.prompts_per_step, "samples": rollout.rollouts_per_prompt, "seed": config.seed}
    adaptive = config.experimental.curriculum
    if adaptive is None:
        return Uniform(trained, **size)
    return Adaptive(trained, **size, interest=Interest(**adaptive.model_dump()))


def _check_data(config: RunConfig, prompts: Sequence[Prompt], task: Task | None) -> None:
    """Hold the facts about prompts that settings need against the prompts.

    Raises:
        ConfigError: rewards are needed, and nothing checks the prompts' answers.
        DataError: reference answers are needed, and a prompt has none.
    """
    from opd.axes.needs import named

    for key, fact in config.all_needs():
        if fact == "rewards" and task is None:
            raise ConfigError(
                f"{named(config, key)} needs rewards, and nothing checks the prompts' answers. Fix: give prompts with "
                "an answer, a task, or prompts.reward"
            )
        for prompt in prompts if fact == "answers" else ():
            if prompt.answer is None and (prompt.turns is None or key == "teacher.view"):
                raise DataError(
                    f"prompts: prompt '{prompt.id}' has no answer, and {named(config, key)} needs one. Fix: add it"
                )


def _check_comparison(config: RunConfig) -> None:
    """A judge that ranks needs several answers to each prompt.

    Raises:
        ConfigError: there is one.
    """
    sources = config.prompts.mix or (config.prompts,)
    rewards = [reward for source in (config.prompts, *sources) for reward in source.reward or ()]
    if any(reward.compare for reward in rewards) and config.rollout.rollouts_per_prompt == 1:
        raise ConfigError(
            "prompts.reward.compare needs several rollouts of each prompt (rollout.rollouts_per_prompt=1). Fix: set "
            "rollout.rollouts_per_prompt to 2 or more"
        )


def _shares(config: RunConfig, prompts: Sequence[Prompt]) -> dict[str, dict[str, float]]:
    """By domain and name, each teacher's weight. A single teacher behind a gate teaches every domain."""
    teacher = config.teacher
    if teacher.models:
        check_covered(config, prompts)
        return teacher.shares
    if teacher.gate:
        return {domain: {"teacher": 1.0} for domain in sorted({prompt.domain for prompt in prompts})}
    return {}


def _teachers(config: RunConfig, objects: Objects, student: LanguageModel, bases: Bases, device: str) -> dict[str, Any]:
    """The teacher's model, or the pool of several."""
    teacher = config.teacher
    if not teacher.is_model:
        return {}
    if teacher.quantize:
        if objects.teacher is not None:
            raise ConfigError(
                "teacher.quantize: a teacher given from Python is taken as it is. Fix: give it quantised, or name its "
                "folder in teacher.model"
            )
        bases = Bases(teacher.quantize)
    if teacher.models or teacher.gate:
        if objects.teacher is not None:
            raise ConfigError(
                "teacher.gate: a teacher given from Python is not measured. Fix: name its folder in teacher.model"
            )
        named = {name: one.model for name, one in (teacher.models or {}).items()}
        sources = named or {"teacher": teacher.model or ""}
        pool = ModelPool(sources, key="teacher.models", dtype=config.dtype, device=device, bases=bases)
        for name in pool:
            _check_rows(student, pool[name], key=f"teacher.models.{name}")
        return {"pool": pool}
    if objects.teacher is not None and objects.teacher.model is student.model:
        raise ConfigError(
            "teacher: it is the student's own object, which changes while it trains. Fix: give a copy, or set "
            "teacher.weights=frozen"
        )
    given = objects.teacher and accept(objects.teacher, key="teacher.model")
    model = given or load(teacher.model or "", key="teacher.model", dtype=config.dtype, device=device, bases=bases)
    model.model.requires_grad_(False)
    if config.loss.signal.same_tokenizer:
        _check_rows(student, model, key="teacher.model")
    return {"teacher_model": model}


def _check_rows(student: LanguageModel, teacher: LanguageModel, *, key: str) -> None:
    """Both have the same tokens, and a row of the output head for each."""
    known, rows = check_vocabulary(student.tokenizer, teacher.tokenizer, key=key), min(student.rows, teacher.rows)
    if rows < known:
        raise ModelError(
            f"{key}: the tokenizer has ids up to {known - 1}, but an output head has only {rows} rows. Fix: take a "
            "model whose head covers its tokenizer"
        )


def check_covered(config: RunConfig | DiffusionConfig, prompts: Sequence[Prompt]) -> None:
    """Check that several teachers cover every prompt's domain.

    Raises:
        ConfigError: no teacher has the domain of a prompt.
    """
    shares = config.teacher.shares
    for prompt in prompts:
        if prompt.domain not in shares:
            raise ConfigError(
                f"teacher.models: no teacher has the domain '{prompt.domain}' of prompt '{prompt.id}' (they have "
                f"{', '.join(shares)}). Fix: add it to models.NAME.domains, or set prompts.domain"
            )


def _check_lengths(run: LanguageContext, held_out: Rendered) -> None:
    """Every prompt leaves room for an answer, in every model that reads it."""
    config, signal = run.config, run.config.loss.signal
    for rendered, own in ((run.training, None), (held_out, config.eval.max_new_tokens)):
        setting, budget = "eval.max_new_tokens" if own else "rollout.max_new_tokens", own or run.max_new_tokens
        rendered.check_room(budget, run.student.max_length, setting=setting)
        for key, teacher in run.named_teachers() if signal.reads_teacher else ():
            read = rendered if signal.same_tokenizer else rendered.by(Chat(teacher.tokenizer))
            read.check_room(budget, teacher.max_length, setting=setting, reader=f" for {key}")


def _check_view_lengths(run: LanguageContext) -> None:
    """Every training prompt as the teacher reads it, if its view is known before any rollout."""
    seen = getattr(run.view(), "seen", None)
    if seen is None:
        return
    view = f"teacher.view={run.config.teacher.view.type}"
    read = Rendered.of([seen(prompt) for prompt in run.prompts], run.chat, key=view)
    room = run.pool.max_length if run.pool else (run.teacher_model or run.student).max_length
    read.check_room(run.max_new_tokens, room, setting="rollout.max_new_tokens", reader=" as the teacher reads it")
