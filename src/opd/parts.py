"""From a run file to its parts: models, prompts, tasks, views, hint authors, and whether they fit together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opd.config import BaseRun, DiffusionConfig, ExpertConfig, PromptsConfig, RunConfig
from opd.data.curriculum import Adaptive, Curriculum, Interest, Uniform
from opd.data.prompts import given_prompts, load_prompts
from opd.engines.hf import HFEngine
from opd.errors import ConfigError, DataError, ModelError
from opd.losses import check_divergence, clipped
from opd.models.chat import Chat
from opd.models.language import LanguageModel, accept, check_vocabulary, load, stop_ids
from opd.models.pool import ModelPool
from opd.rollouts.sampler import ALL_TURNS, Sampler
from opd.teachers.experience import gather_experience
from opd.teachers.hint_http import HttpAuthor
from opd.teachers.hints import ModelAuthor, RulesAuthor
from opd.teachers.prompt_views import ContextView, FeedbackView, PrivilegedView
from opd.teachers.views import HintView, PlainView
from opd.types import Engine, HintAuthor, Prompt, Sampling, Task, View

SMALL_MODEL = 20_000_000
"""Parameters below which more than one CPU thread costs more in waiting than it saves."""

CONTEXT_FILE = "context.txt"
"""In the run's folder: what the teacher of a context view read."""
LONGEST = 32
"""Prompts, by characters, whose tokens are counted before the run; a run that meets a longer one later stops there."""


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Parts given from Python instead of named in the run file."""

    student: Any = None
    """A ``LanguageModel``, or a diffusers pipeline."""
    teacher: Any = None
    prompts: Sequence[Any] | None = None
    task: Any = None
    """A ``Task``, or a ``ImageTask``."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run consists of before it is put into a loop; ``opd doctor`` looks at the same."""

    config: RunConfig
    student: LanguageModel
    chat: Chat
    prompts: list[Prompt]
    curriculum: Curriculum
    task: Task | None
    held_out: list[Prompt]
    held_out_task: Task | None
    teacher: LanguageModel | None
    """The model of ``teacher.model``; None for the self-teachers and for several."""
    experts: ModelPool | None
    """The models of ``teacher.models``."""
    author: HintAuthor | None
    vocab_size: int | None
    """Where heads are padded to different sizes: how many rows both have."""
    context: str = ""
    """What the teacher of a context view reads."""


def device_of(config: BaseRun) -> str:
    """``auto`` resolved."""
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def gather(config: RunConfig, objects: Objects) -> Parts:
    """Load everything a run names and check that it fits together.

    Raises:
        OpdError: the first thing that does not, in one sentence.
    """
    device = device_of(config)
    check_divergence(config.loss.divergence, beta=config.loss.beta)
    if config.loss.clip is not None:
        clipped(config.loss.divergence, config.loss.clip)
    student = objects.student and accept(objects.student, key="student")
    student = student or load(config.student, key="student", device=device)
    student = _with_precision(student, config)
    size = sum(p.numel() for p in student.model.parameters())
    if config.threads or size < SMALL_MODEL:
        torch.set_num_threads(config.threads or 1)
    chat = Chat(student.tokenizer)
    prompts, task = _prompts(config.prompts, objects, chat)
    _check_answers(config, prompts, objects.task or task)
    curriculum = _curriculum(config, prompts)
    held_out: list[Prompt] = []
    held_out_task: Task | None = None
    if config.eval.prompts:
        held_out, held_out_task = load_prompts(config.eval.prompts, key="eval.prompts", has_template=chat.has_template)
    teacher, experts, vocab_size = None, None, None
    config = _as_experts(config, objects, prompts)
    if config.teacher.models:
        check_covered(config, prompts)
        experts, vocab_size = _experts(config, student, device)
    elif config.teacher.weights == "model":
        teacher, vocab_size = _teacher(config, objects, student, device)
    parts = Parts(
        config=config,
        student=student,
        chat=chat,
        prompts=prompts,
        curriculum=curriculum,
        task=objects.task or task,
        held_out=held_out,
        held_out_task=objects.task or held_out_task,
        teacher=teacher,
        experts=experts,
        author=_author(config, device),
        vocab_size=vocab_size,
    )
    _check_lengths(parts)
    parts = dataclasses.replace(parts, context=context_of(parts))
    _check_view_lengths(parts)
    return parts


def engine_of(parts: Parts, model: LanguageModel) -> Engine:
    """What generates tokens with a model."""
    return HFEngine(model, max_rows=parts.config.rollout.max_rows)


def sampler_of(parts: Parts, sampling: Sampling, *, held_out: bool, model: LanguageModel | None = None) -> Sampler:
    """A sampler in the run's environment, from the student or another model with its tokenizer.

    With ``loss.signal=cross`` the other model has its own tokenizer, template and stop tokens.
    """
    rollout = parts.config.rollout
    language_model = model or parts.student
    speaker = language_model if parts.config.loss.signal == "cross" else parts.student
    budget = parts.config.eval.max_new_tokens if held_out else None
    return Sampler(
        engine_of(parts, language_model),
        parts.chat if speaker is parts.student else Chat(speaker.tokenizer),
        parts.held_out_task if held_out else parts.task,
        sampling=sampling,
        stop_ids=stop_ids(speaker),
        max_new_tokens=budget or rollout.max_new_tokens,
        max_turns=rollout.max_turns,
        grow_every=None if held_out else rollout.turns_grow_every,
        source="student" if model is None else "teacher",
        max_length=language_model.max_length,
    )


def view_of(parts: Parts) -> View:
    """The view the run file asks for."""
    config = parts.config.teacher.view
    if config.hint:
        assert parts.author is not None
        hint = config.hint
        return HintView(parts.author, parts.chat, place=hint.place, role=hint.role, max_hints=hint.max_hints)
    if config.privileged:
        return PrivilegedView(parts.chat, **config.privileged.model_dump(exclude_none=True))
    if config.feedback:
        return FeedbackView(parts.chat, **config.feedback.model_dump(exclude_none=True))
    if config.context:
        settings = config.context.model_dump(include={"template", "role"}, exclude_none=True)
        return ContextView(parts.chat, parts.context, **settings)
    return PlainView()


def context_of(parts: Parts) -> str:
    """The text of a context view: as given, from a file, or gathered from the student's own rollouts.

    A run that goes on reads what it gathered when it began.
    """
    config = parts.config.teacher.view.context
    if config is None:
        return ""
    if config.text is not None:
        return config.text.strip()
    gathered = Path(parts.config.out) / CONTEXT_FILE
    if gathered.exists():
        return gathered.read_text(encoding="utf-8").strip()
    if config.experience:
        assert parts.author is not None
        prompts = parts.prompts[: config.experience.prompts]
        rollouts = sampler_of(parts, Sampling(), held_out=False).rollout(prompts, parts.config.seed, ALL_TURNS)
        settings = config.experience
        return gather_experience(rollouts, parts.author, items=settings.items, consolidate=settings.consolidate)
    path = Path(config.file or "")
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"teacher.view.context.file: cannot read '{path}': {error}") from None
    if not text:
        raise DataError(f"teacher.view.context.file: '{path}' is empty")
    return text


def _with_precision(model: LanguageModel, config: RunConfig) -> LanguageModel:
    return dataclasses.replace(model, autocast=torch.bfloat16 if config.dtype == "bfloat16" else None)


def _prompts(config: PromptsConfig, objects: Objects, chat: Chat) -> tuple[list[Prompt], Task | None]:
    given = objects.prompts
    if given is None:
        return load_prompts(config, key="prompts", has_template=chat.has_template)
    return given_prompts(given, chat=chat.has_template)


def _curriculum(config: RunConfig, prompts: list[Prompt]) -> Curriculum:
    rollout = config.rollout
    trained = prompts[: rollout.offline] if rollout.offline else prompts
    if rollout.curriculum is None:
        return Uniform(trained, batch=rollout.batch, samples=rollout.samples, seed=config.seed)
    interest = Interest(**rollout.curriculum.model_dump())
    return Adaptive(trained, batch=rollout.batch, samples=rollout.samples, seed=config.seed, interest=interest)


def _check_answers(config: RunConfig, prompts: Sequence[Prompt], task: Task | None) -> None:
    curriculum = config.rollout.curriculum
    rewarded = {
        "loss.outcome": config.loss.outcome > 0,
        "loss.signal=reward": config.loss.signal == "reward",
        "rollout.curriculum.success": curriculum is not None and curriculum.success > 0,
    }
    what = next((key for key, given in rewarded.items() if given), None)
    if what and task is None:
        raise ConfigError(f"{what} needs rewards, and nothing checks the prompts' answers; give prompts with an answer")
    if config.teacher.view.feedback and task is None:
        raise ConfigError(
            "teacher.view.feedback shows attempts that succeeded, or what an environment said, and nothing checks the "
            "prompts' answers; give prompts with an answer, or a task"
        )
    reasons = {
        "rollout.policy=answers": "answers" in config.rollout.writers,
        "teacher.view=privileged": config.teacher.view.privileged is not None,
        "loss.gold": config.loss.gold > 0,
    }
    why = next((reason for reason, given in reasons.items() if given), None)
    for prompt in prompts if why else ():
        if prompt.answer is None and (prompt.turns is None or config.teacher.view.privileged):
            raise DataError(f"prompts: prompt '{prompt.id}' has no answer, and {why} needs one")


def _check_lengths(parts: Parts) -> None:
    """The longest prompts, to train on and held out, have to render and to leave room for an answer."""
    for prompts, held_out in ((parts.prompts, False), (parts.held_out, True)):
        longest = sorted(prompts, key=lambda p: -len(str(p.messages or p.text)))[:LONGEST]
        sampler_of(parts, Sampling(), held_out=held_out).check(longest)
        for key, teacher in teachers_of(parts) if parts.config.loss.reads_teacher else ():
            try:
                sampler_of(parts, Sampling(), held_out=held_out, model=teacher).check(longest)
            except DataError as error:
                raise DataError(f"{key} has to hold as much as the student: {error}") from None


def _check_view_lengths(parts: Parts) -> None:
    """The longest training prompts as the teacher reads them, where its view is known before any rollout."""
    view = view_of(parts)
    room = parts.experts.max_length if parts.experts else (parts.teacher or parts.student).max_length
    if room is None or not isinstance(view, PrivilegedView | ContextView):
        return
    seen = view.privileged if isinstance(view, PrivilegedView) else view.in_context
    most = parts.config.rollout.max_new_tokens
    for prompt in sorted(parts.prompts, key=lambda p: -len(f"{p.messages or p.text}{p.answer}"))[:LONGEST]:
        length = len(parts.chat.prompt_ids(seen(prompt)))
        if length + most > room:
            raise DataError(
                f"teacher.view.{parts.config.teacher.view.kind}: prompt '{prompt.id}' has {length} tokens as the "
                f"teacher reads it, and with rollout.max_new_tokens={most} exceeds the model's {room}; shorten one"
            )


def _teacher(
    config: RunConfig, objects: Objects, student: LanguageModel, device: str
) -> tuple[LanguageModel, int | None]:
    dtype = config.dtype
    name = config.teacher.model or ""
    given = objects.teacher and accept(objects.teacher, key="teacher.model")
    teacher = given or load(name, key="teacher.model", dtype=dtype, device=device)
    teacher.model.requires_grad_(False)
    if config.loss.signal == "cross":
        return teacher, None
    return teacher, _vocab_size(student, [("teacher.model", teacher)])


def _as_experts(config: RunConfig, objects: Objects, prompts: Sequence[Prompt]) -> RunConfig:
    """A single teacher behind a gate is one of several that reads every domain."""
    if not config.teacher.gate or config.teacher.models:
        return config
    if objects.teacher is not None or config.teacher.model is None:
        raise ConfigError("teacher.gate: a teacher given from Python is not measured by it; give teacher.model a path")
    one = ExpertConfig(model=config.teacher.model, domains=tuple(sorted({p.domain for p in prompts})))
    several = config.teacher.model_copy(update={"models": {"teacher": one}, "model": None})
    return config.model_copy(update={"teacher": several})


def _experts(config: RunConfig, student: LanguageModel, device: str) -> tuple[ModelPool, int | None]:
    assert config.teacher.models
    sources = {name: expert.model for name, expert in config.teacher.models.items()}
    pool = ModelPool(sources, key="teacher.models", dtype=config.dtype, device=device)
    return pool, _vocab_size(student, [(f"teacher.models.{name}", pool[name]) for name in pool])


def _vocab_size(student: LanguageModel, teachers: Sequence[tuple[str, LanguageModel]]) -> int | None:
    """Rows that all heads have, where their padding differs; tokenizers have to agree."""
    ours = student.head_VD.shape[0]
    sizes = {ours}
    for key, teacher in teachers:
        known, theirs = check_vocabulary(student.tokenizer, teacher.tokenizer, key=key), teacher.head_VD.shape[0]
        if min(ours, theirs) < known:
            raise ModelError(
                f"{key}: the tokenizer has ids up to {known - 1}, but an output head has only {min(ours, theirs)} rows"
            )
        sizes.add(theirs)
    return min(sizes) if len(sizes) > 1 else None


def check_covered(config: RunConfig | DiffusionConfig, prompts: Sequence[Prompt]) -> None:
    """Several teachers have to read every domain there is.

    Raises:
        ConfigError: nobody reads the domain of a prompt.
    """
    shares = config.teacher.shares
    for prompt in prompts:
        if prompt.domain not in shares:
            raise ConfigError(
                f"teacher.models: prompt '{prompt.id}' is of domain '{prompt.domain}', and the teachers read "
                f"{', '.join(shares)}; give it to one of them (models.NAME.domains), or name its source's domain "
                "(prompts.domain)"
            )


def teachers_of(parts: Parts) -> Iterator[tuple[str, LanguageModel]]:
    """Each teacher that is a model of its own, with its key; of several each is good until the next."""
    if parts.teacher is not None:
        yield "teacher.model", parts.teacher
    for name in parts.experts or ():
        assert parts.experts
        yield f"teacher.models.{name}", parts.experts[name]


def _author(config: RunConfig, device: str) -> HintAuthor | None:
    author = config.teacher.view.author
    if author is None:
        return None
    if author.kind == "rules":
        return RulesAuthor(author.templates)
    said: dict[str, Any] = {"instruction": author.instruction} if author.instruction else {}
    where = "hint" if config.teacher.view.hint else "context.experience"
    if author.kind == "http":
        settings = author.model_dump(exclude={"templates", "http", "model", "instruction"})
        key = f"teacher.view.{where}.author.http"
        return HttpAuthor(author.http or "", author.model or "", **settings, **said, key=key)
    critic = load(author.model or "", key=f"teacher.view.{where}.author.model", device=device)
    return ModelAuthor(
        HFEngine(critic),
        Chat(critic.tokenizer),
        stop_ids=stop_ids(critic),
        max_new_tokens=author.max_new_tokens,
        max_length=critic.max_length,
        **said,
    )
