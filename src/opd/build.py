"""From a run file to the parts of a loop. Everything that can be refused is refused here, before any step."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from opd.config import EvalConfig, RunConfig
from opd.data.prompts import read_jsonl
from opd.engines.hf import Sampling
from opd.errors import ConfigError, DataError
from opd.evaluation.evaluate import SEED, Evaluation, Peer, mean_divergence
from opd.evaluation.metrics import Metrics, summarise
from opd.evaluation.teacher_gate import Gate
from opd.experimental.conflict import Conflict
from opd.experimental.extrapolation import Extrapolation
from opd.loop import Loop, Term
from opd.models.forward import read_own
from opd.models.language import LanguageModel, checkpoint_activations, stop_ids
from opd.models.pool import ModelPool
from opd.output.run_log import RunLog
from opd.parts import Parts, sampler_of, view_of
from opd.rollouts.mixture import Mixture
from opd.rollouts.recorded import Recording, record, save
from opd.rollouts.recorded import load as read_recording
from opd.rollouts.references import ReferenceAnswers, WithAnswers
from opd.rollouts.sampler import Prefix
from opd.teachers.experts import Experts, ExpertsWrite, first, label_of
from opd.teachers.local import LocalTeacher
from opd.teachers.sampled import SampledTeacher
from opd.teachers.views import HintView
from opd.terms import among_teachers, assemble_terms, divergence_of, experts_of, layers_of, reader
from opd.training.checkpoint import Checkpoints
from opd.training.guards import Guards, Watch
from opd.training.optimizer import Optimizer
from opd.training.recovery import Recovery
from opd.types import Prompt, Rollout, RolloutSource, View


def assemble(parts: Parts, log: RunLog) -> Loop:
    """Put the parts into a loop that is ready to run from step 0."""
    config, student = parts.config, parts.student
    torch.manual_seed(config.seed)
    student.model.requires_grad_(True)
    if config.optimizer.gradient_checkpointing:
        checkpoint_activations(student)
    terms, scoring, average = assemble_terms(parts)
    sampler = _training_sampler(parts)
    if config.rollout.offline:
        sampler = recording = _recording(parts, terms[0], sampler)
        terms[0] = dataclasses.replace(terms[0], teacher=recording, view=recording)
    return Loop(
        student=student,
        sampler=sampler,
        reader=partial(read_own, student, size=config.optimizer.micro_batch, layers=layers_of(parts)),
        curriculum=parts.curriculum,
        terms=terms,
        optimizer=Optimizer(
            student.model,
            **config.optimizer.model_dump(exclude={"micro_batch", "gradient_checkpointing", "extrapolate"}),
        ),
        guards=Guards(**config.guards.model_dump(exclude={"recover"}), num_prompts=max(len(parts.held_out), 1)),
        checkpoints=Checkpoints(Path(config.out) / "checkpoints", every=config.checkpoint.every),
        log=log,
        steps=config.optimizer.steps,
        seed=config.seed,
        average=average,
        gate=_gate(parts, terms[0]),
        evaluate=evaluation(parts, scoring, terms[0]),
        evaluate_every=config.eval.every,
        recovery=_recovery(config),
        extrapolation=_extrapolation(parts, scoring),
    )


def evaluation(parts: Parts, scoring: LanguageModel | None, main: Term | None = None) -> Evaluation | None:
    """What the run measures; None if the run file asks for nothing.

    Args:
        scoring: the model that teaches; None for none, and for several.
        main: the loss's main term, where there is one.
    """
    config: EvalConfig = parts.config.eval
    texts = _texts(config.text, parts) if config.text else []
    if not parts.held_out and not texts:
        return None
    wanted = config.divergence if config.divergence is not None else parts.held_out_task is None
    if parts.config.loss.signal == "cross":
        wanted = False  # no reverse KL between two vocabularies
    divergence = None
    if wanted and (scoring is not None or parts.experts) and parts.held_out:
        view = view_of(parts)
        if isinstance(view, HintView):
            raise ConfigError(
                "eval.divergence: a hint view has no target where no hint is written; leave it out and give "
                "eval.prompts with answers"
            )
        teacher = experts_of(parts) or reader(parts, scoring)
        divergence = (teacher, view, among_teachers(parts, divergence_of(parts, "reverse_kl")))
    return Evaluation(
        student=parts.student,
        prompts=parts.held_out,
        greedy=sampler_of(parts, Sampling(temperature=0), held_out=True),
        sampled=sampler_of(parts, Sampling(), held_out=True),
        samples=config.samples,
        divergence=divergence,
        texts=texts,
        repeats=parts.config.rollout.samples if parts.config.teacher.view.feedback else 1,
        compared=_compared(parts, scoring),
        teacher=_teacher_sampler(parts),
        peers=peers_of(parts),
        conflict=_conflict(parts, main) if config.conflict else None,
    )


def _gate(parts: Parts, main: Term) -> Gate | None:
    """What refuses teachers that are no better than the student, where the run file asks for it."""
    config = parts.config.teacher.gate
    if config is None:
        return None
    teacher = main.teacher.teacher if isinstance(main.teacher, SampledTeacher) else main.teacher
    assert isinstance(teacher, Experts)
    prompts = Counter(p.domain for p in parts.held_out)
    return Gate(teacher, teacher.shares, prompts=prompts, **config.model_dump())


def _conflict(parts: Parts, main: Term | None) -> Conflict:
    """How several teachers stand to each other, by the loss that the run file asks for."""
    assert main is not None
    assert isinstance(main.teacher, Experts)
    return Conflict(
        student=parts.student,
        experts=main.teacher,
        view=view_of(parts),
        objective=main.objective,
        max_tokens=parts.config.teacher.max_tokens,
        vocab_size=parts.vocab_size,
    )


def _recovery(config: RunConfig) -> Recovery | None:
    recover = config.guards.recover
    if recover is None:
        return None
    policy = recover.model_dump(include={"times", "lr", "anchor"})
    return Recovery(Watch(**recover.model_dump(exclude=set(policy)), prompts=config.rollout.batch), **policy)


def _extrapolation(parts: Parts, scoring: LanguageModel | None) -> Extrapolation | None:
    """Candidates are compared by greedy accuracy where answers can be checked, else by reverse KL to the teacher."""
    config = parts.config.optimizer.extrapolate
    if config is None:
        return None
    checkable = [p for p in parts.prompts if p.answer is not None] or parts.prompts
    prompts = random.Random(parts.config.seed).sample(checkable, min(config.prompts, len(checkable)))
    sampler = sampler_of(parts, Sampling(temperature=0 if parts.task else 1), held_out=False)
    sampler.grow_every = None
    measure = summarise if parts.task else _divergence(parts, scoring)

    def validate() -> tuple[Metrics, int]:
        rollouts = sampler.rollout(prompts, SEED)
        return measure(rollouts), sum(r.num_tokens for r in rollouts)

    return Extrapolation(parts.student.model, validate, candidates=config.candidates)


def _divergence(parts: Parts, scoring: LanguageModel | None) -> Callable[[Sequence[Rollout]], Metrics]:
    """Measures ``reverse_kl`` on rollouts."""
    view = view_of(parts)
    none = scoring is None and parts.experts is None
    if none or isinstance(view, HintView) or parts.config.loss.signal == "cross":
        raise ConfigError(
            "optimizer.extrapolate compares by accuracy or by the divergence from the teacher, and neither can be "
            "measured on these prompts; give prompts with answers, or leave it out"
        )
    teacher = experts_of(parts) or reader(parts, scoring)
    objective = among_teachers(parts, divergence_of(parts, "reverse_kl"))

    def measure(rollouts: Sequence[Rollout]) -> Metrics:
        mean = mean_divergence(parts.student, rollouts, teacher, view, objective)
        return {} if mean is None else {"reverse_kl": mean}

    return measure


def _compared(parts: Parts, scoring: LanguageModel | None) -> tuple[LocalTeacher | None, View, int] | None:
    """Teacher, view and prompts of the diagnostics; none for another vocabulary, or where each look costs requests."""
    number, hint = parts.config.eval.diagnostics, parts.config.teacher.view.hint
    asks = hint is not None and hint.author.kind == "http"
    loss = parts.config.loss
    none = scoring is None and parts.experts is None
    if not number or none or not loss.reads_teacher or loss.signal == "cross" or asks:
        return None
    return reader(parts, scoring) if scoring else None, view_of(parts), number


def peers_of(parts: Parts) -> list[Peer]:
    """Several teachers, each on those of its domains that are held out."""
    pool, shares = parts.experts, parts.config.teacher.shares
    if pool is None or not parts.config.eval.diagnostics:
        return []
    return [
        Peer(
            domain=domain,
            label=label_of(shares, domain, name),
            reader=partial(_reader, parts, pool, name),
            greedy=partial(_greedy, parts, pool, name),
            leads=name == first(shares[domain]),
        )
        for domain in sorted({p.domain for p in parts.held_out} & shares.keys())
        for name in shares[domain]
    ]


def _reader(parts: Parts, pool: ModelPool, name: str) -> LocalTeacher:
    return reader(parts, pool[name])


def _greedy(parts: Parts, pool: ModelPool, name: str) -> RolloutSource:
    return sampler_of(parts, Sampling(temperature=0), held_out=True, model=pool[name])


def _teacher_sampler(parts: Parts) -> RolloutSource | None:
    """Rolls out the teacher where it is a model of its own and answers can be checked."""
    if parts.teacher is None or parts.held_out_task is None or not parts.config.eval.diagnostics:
        return None
    return sampler_of(parts, Sampling(temperature=0), held_out=True, model=parts.teacher)


def _experts_write(parts: Parts, sampling: Sampling) -> ExpertsWrite:
    """Rollouts by several teachers, each of its own domains."""
    assert parts.experts
    one = partial(sampler_of, parts, sampling, held_out=False)
    return ExpertsWrite(parts.experts, parts.config.teacher.shares, lambda model: one(model=model))


def _training_sampler(parts: Parts) -> RolloutSource:
    rollout = parts.config.rollout
    if parts.config.loss.gold:
        return WithAnswers(_writer(parts, "student"), _answers(parts))
    if len(rollout.writers) == 1:
        return _writer(parts, rollout.policy)
    student, other = _writer(parts, "student"), _writer(parts, rollout.other)
    return Mixture(student, other, share=rollout.off_policy, first=rollout.off_policy_steps)


def _recording(parts: Parts, main: Term, roller: RolloutSource) -> Recording:
    """The initial student's rollouts and the teacher's word on them; a run that goes on reads what it has."""
    rollout, path = parts.config.rollout, Path(parts.config.out) / "recorded.jsonl"
    if not path.exists():
        assert isinstance(main.teacher, SampledTeacher)
        assert main.view is not None
        prompts, sizes = parts.prompts[: rollout.offline], {"samples": rollout.samples, "batch": rollout.batch}
        save(record(roller, main.teacher, main.view, prompts, **sizes, seed=parts.config.seed), path)
    return Recording(read_recording(path, parts.prompts))


def _writer(parts: Parts, who: str) -> RolloutSource:
    rollout = parts.config.rollout
    if who == "answers":
        return _answers(parts)
    sampling = Sampling(temperature=rollout.temperature, top_p=rollout.top_p, top_k=rollout.top_k)
    if who == "teacher" and parts.experts:
        return _experts_write(parts, sampling)
    sampler = sampler_of(parts, sampling, held_out=False, model=parts.teacher if who == "teacher" else None)
    if who == "student" and (rollout.prefix or rollout.prefix_turns):
        engine = sampler_of(parts, sampling, held_out=False, model=parts.teacher).engine
        sampler.prefix = Prefix(engine, tokens=rollout.prefix, turns=rollout.prefix_turns)
    return sampler


def _answers(parts: Parts) -> ReferenceAnswers:
    stop, longest = min(stop_ids(parts.student)), parts.student.max_length
    return ReferenceAnswers(parts.chat, parts.task, stop=stop, max_length=longest)


def _texts(path: str, parts: Parts) -> list[tuple[int, ...]]:
    """Token ids of held-out texts, cut at what the model can hold."""
    texts = []
    for number, row in enumerate(read_jsonl(path, key="eval.text"), 1):
        if not isinstance(row.get("text"), str):
            raise DataError(f"eval.text: row {number} of '{path}' has no string 'text'")
        ids = parts.chat.prompt_ids(Prompt(id=str(number), text=row["text"]))
        texts.append(ids[: parts.student.max_length])
    return texts
