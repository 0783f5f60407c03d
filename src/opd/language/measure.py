"""What a language run measures, from the run file: evaluation, gate, validation."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from opd.config.run import PromptsConfig
from opd.data.files import read_rows
from opd.data.prompts import HELD_OUT, load_prompts
from opd.data.rows import Note, ignore
from opd.data.tool_prompts import fit_to_template
from opd.engines.hf import HFEngine
from opd.errors import ConfigError, DataError
from opd.evaluation.evaluate import SEED, DomainTeacher, Evaluation, mean_divergence
from opd.evaluation.metrics import summarise
from opd.evaluation.teacher_gate import Gate
from opd.experimental.conflict import Conflict
from opd.experimental.extrapolation import Extrapolation
from opd.language.context import LanguageContext
from opd.language.lengths import Rendered
from opd.models.chat import Chat
from opd.models.language import LanguageModel, device_named, set_threads, stop_ids
from opd.models.loading import accept, load
from opd.models.vocabularies import check_readable
from opd.rewards.build import RewardBuilder
from opd.rollouts.sampler import Sampler
from opd.teachers.by_domain import TeachersByDomain, first, label_of
from opd.teachers.local import LocalTeacher
from opd.teachers.sampled import SampledTeacher
from opd.types import Metrics, Objective, Prompt, Rollout, RolloutSource, Sampling, Task, Teacher, Term, View

GREEDY = Sampling(temperature=0)


def evaluation(run: LanguageContext, main: Term) -> Evaluation | None:
    """What the run measures; None if the run file asks for nothing.

    Args:
        main: the loss's main term.
    """
    config = run.config.eval
    texts = _texts(run, config.text) if config.text else []
    if not run.held_out and not texts:
        return None
    compares = run.config.teacher.view.compares
    return Evaluation(
        student=run.student,
        prompts=run.held_out,
        greedy=run.sampler(GREEDY, held_out=True),
        sampled=run.sampler(held_out=True),
        drawn=run.sampler(config.sampling.sampling, held_out=True),
        samples=config.rollouts_per_prompt,
        divergence=_divergence(run) if run.held_out and _wants_divergence(run) else None,
        texts=texts,
        repeats=run.config.rollout.rollouts_per_prompt if compares else 1,
        compared=_compared(run),
        teacher=_teacher_sampler(run),
        teachers=_teachers(run),
        conflict=_conflict(run, main) if run.config.experimental.conflict else None,
    )


def measure_model(
    model: str | LanguageModel,
    prompts: PromptsConfig,
    *,
    samples: int,
    max_new_tokens: int,
    max_turns: int,
    device: str,
    dtype: str = "float32",
    temperature: float = 0.0,
    note: Note = ignore,
) -> Metrics:
    """Measure a model on prompts, outside any run.

    Args:
        model: path, bundled name or hub id, or a loaded model.
        samples: n of avg@n; 0 leaves it out.
        device, dtype: as in the run file.
        temperature: of the measured answers; 0 takes the most likely token.
        note: takes sentences about the prompts.

    Raises:
        OpdError: the model or the prompts cannot be used.
    """
    if isinstance(model, str):
        loaded = load(model, key="model", dtype=dtype, device=device_named(device))
    else:
        loaded = accept(model, key="model")
    set_threads(None, loaded.model)
    chat = Chat(loaded.tokenizer)
    rewards = RewardBuilder(device=device_named(device))

    def judged(source: PromptsConfig, task: Task | None) -> Task | None:
        return rewards.task(task, source.reward, key="eval.prompts.reward", held_out=True)

    held_out, task = load_prompts(
        prompts, key="eval.prompts", has_template=chat.has_template, splits=HELD_OUT, judged=judged
    )
    held_out = fit_to_template(held_out, chat, note)

    def sampler(sampling: Sampling) -> Sampler:
        return Sampler(
            HFEngine(loaded),
            chat,
            task,
            sampling=sampling,
            stop_ids=stop_ids(loaded),
            max_new_tokens=max_new_tokens,
            max_turns=max_turns,
            max_length=loaded.max_length,
        )

    rendered = Rendered.of(held_out, chat, key="eval.prompts").within(prompts.max_tokens, note)
    check_readable(loaded, rendered.prompts, key="eval.prompts")
    rendered.check_room(max_new_tokens, loaded.max_length, setting="max_new_tokens")
    measure = Evaluation(
        student=loaded,
        prompts=rendered.prompts,
        greedy=sampler(Sampling(temperature=temperature)),
        sampled=sampler(Sampling()),
        drawn=sampler(Sampling()),
        samples=samples,
    )
    return measure()


def gate(run: LanguageContext, main: Term) -> Gate | None:
    """The gate of ``teacher.gate``."""
    config = run.config.teacher.gate
    if config is None:
        return None
    teacher = main.teacher.teacher if isinstance(main.teacher, SampledTeacher) else main.teacher
    assert isinstance(teacher, TeachersByDomain)
    prompts = Counter(p.domain for p in run.held_out)
    return Gate(
        teacher,
        teacher.shares,
        prompts=prompts,
        margin=config.margin,
        overlap=config.min_overlap,
        by_quality=config.by_quality,
    )


def extrapolation(run: LanguageContext) -> Extrapolation | None:
    """Candidates are compared by greedy accuracy if answers can be checked, else by reverse KL to the teacher."""
    config = run.config.experimental.extrapolate
    if config is None:
        return None
    checkable = [p for p in run.prompts if p.answer is not None] or run.prompts
    prompts = random.Random(run.config.seed).sample(checkable, min(config.prompts, len(checkable)))
    sampler = run.sampler(Sampling(temperature=0 if run.task else 1), all_turns=True)
    measure = summarise if run.task else _reverse_kl(run)

    def validate() -> tuple[Metrics, int]:
        rollouts = sampler.rollout(prompts, SEED)
        return measure(rollouts), sum(r.num_tokens for r in rollouts)

    return Extrapolation(run.student.model, validate, candidates=config.candidates)


def _wants_divergence(run: LanguageContext) -> bool:
    """Whether the divergence is asked for, or stands in for accuracy."""
    signal, asked = run.config.loss.signal, run.config.eval.divergence
    if not signal.reads_teacher or not signal.same_tokenizer:
        return False
    return asked if asked is not None else run.held_out_task is None


def _divergence(run: LanguageContext) -> tuple[Teacher, View, Objective]:
    """Teacher, view and objective of the mean reverse KL."""
    if run.config.teacher.view.partial:
        raise ConfigError(
            f"eval.divergence: teacher.view={run.config.teacher.view.type} has no target where it covers nothing. Fix: "
            "leave eval.divergence out and give eval.prompts with answers"
        )
    return run.teacher(), run.view(), run.among_teachers(run.divergence("reverse_kl"))


def _reverse_kl(run: LanguageContext) -> Callable[[Sequence[Rollout]], Metrics]:
    """Measures ``reverse_kl`` on rollouts."""
    signal = run.config.loss.signal
    if not signal.reads_teacher or not signal.same_tokenizer or run.config.teacher.view.partial:
        raise ConfigError(
            "experimental.extrapolate compares by accuracy or by the divergence from the teacher, and neither can be "
            "measured on these prompts. Fix: give prompts with answers, or leave it out"
        )
    teacher, view, objective = _divergence(run)

    def measure(rollouts: Sequence[Rollout]) -> Metrics:
        mean = mean_divergence(run.student, rollouts, teacher, view, objective)
        return {} if mean is None else {"reverse_kl": mean}

    return measure


def _compared(run: LanguageContext) -> tuple[LocalTeacher | None, View, int] | None:
    """Teacher (None for several), view and number of prompts of the diagnostics; None leaves them out."""
    config = run.config
    signal = config.loss.signal
    possible = signal.reads_teacher and signal.same_tokenizer and not config.teacher.view.sends_requests
    if not config.eval.diagnostics or not possible:
        return None
    return None if run.pool else run.scorer(run.scoring), run.view(), config.eval.diagnostics


def _teacher_sampler(run: LanguageContext) -> RolloutSource | None:
    """Rolls out a teacher that is one model of its own, if answers can be checked."""
    teacher = run.teacher_model
    if teacher is None or teacher.is_served or run.held_out_task is None or not run.config.eval.diagnostics:
        return None
    return run.sampler(GREEDY, held_out=True, model=run.teacher_model)


def _teachers(run: LanguageContext) -> list[DomainTeacher]:
    """Several teachers, each on its held-out domains."""
    pool, shares = run.pool, run.shares
    if pool is None or not run.config.eval.diagnostics:
        return []

    def scorer(name: str) -> LocalTeacher:
        return run.scorer(pool[name])

    def greedy(name: str) -> RolloutSource | None:
        return None if pool[name].is_served else run.sampler(GREEDY, held_out=True, model=pool[name])

    return [
        DomainTeacher(
            domain=domain,
            label=label_of(shares, domain, name),
            scorer=partial(scorer, name),
            greedy=partial(greedy, name),
            leads=name == first(shares[domain]),
        )
        for domain in sorted({p.domain for p in run.held_out} & shares.keys())
        for name in shares[domain]
    ]


def _conflict(run: LanguageContext, main: Term) -> Conflict:
    """How several teachers relate to each other, by the run's loss."""
    assert isinstance(main.teacher, TeachersByDomain)
    return Conflict(
        student=run.student,
        teachers=main.teacher,
        view=run.view(),
        objective=main.objective,
        max_tokens=run.config.teacher.max_tokens,
    )


def _texts(run: LanguageContext, path: str) -> list[tuple[int, ...]]:
    """Token ids of held-out texts, cut at the model's length."""
    texts = []
    for number, row in enumerate(read_rows(path, key="eval.text"), 1):
        if not isinstance(row.get("text"), str):
            raise DataError(f"eval.text: row {number} of '{path}' has no string 'text'. Fix: add it")
        ids = run.chat.prompt_ids(Prompt(id=str(number), text=row["text"]))
        texts.append(ids[: run.student.max_length])
    return texts
