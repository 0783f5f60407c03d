"""Look at a run before it costs anything."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from opd.evaluation.metrics import summarise
from opd.language.context import LanguageContext
from opd.language.terms import loss_terms
from opd.models.forward import align, student_readings
from opd.models.forward import read as read_hidden
from opd.models.language import LanguageModel
from opd.output.format import figure
from opd.teachers.alignment import TokenTexts, match
from opd.types import Metrics

NUM_PROMPTS = 32
"""Enough to see whether a teacher is better, little enough to take seconds on a small model."""


def findings(run: LanguageContext) -> Iterator[str]:
    """Roll out a few prompts and let the teacher score them; yields a line per finding.

    Raises:
        OpdError: the run cannot work.
    """
    yield from _facts(run)
    yield from _lengths(run)
    yield from _memory(run)
    yield from _teaching(run)


def _facts(run: LanguageContext) -> Iterator[str]:
    student, config = run.student, run.config
    template = "chat template" if run.chat.has_template else "no chat template, prompts are plain text"
    yield f"student   {config.student}: {_size(student.model)} parameters, {len(student.tokenizer)} tokens, {template}"
    if run.teacher_model:
        padded = f", heads of different sizes, compared on {run.vocab_size} rows" if run.vocab_size else ""
        vocabulary = (
            f"same vocabulary{padded}" if config.loss.signal.same_tokenizer else _common(run, run.teacher_model)
        )
        yield f"teacher   {config.teacher.model}: {_size(run.teacher_model.model)} parameters, {vocabulary}"
    elif run.pool and config.teacher.models:
        for name, expert in config.teacher.models.items():
            reads = ", ".join(expert.domains or (name,))
            yield f"teacher   {name}: {expert.model}, {_size(run.pool[name].model)} parameters, reads {reads}"
        yield f"teachers  {len(config.teacher.models)}, of which {run.pool.in_memory} at a time in memory"
    elif not config.loss.signal.reads_teacher:
        yield f"teacher   none; loss.signal is {config.loss.signal.type}"
    else:
        yield f"teacher   the student's own weights, {config.teacher.weights.type}; view: {config.teacher.view.type}"


def _common(run: LanguageContext, teacher: LanguageModel) -> str:
    ours, theirs = run.student.tokenizer, teacher.tokenizer
    common = match(TokenTexts(ours), TokenTexts(theirs), opening=False)[0]
    return f"{len(theirs)} tokens of its own, {len(common)} of them also the student's"


def _lengths(run: LanguageContext) -> Iterator[str]:
    lengths = sorted(len(run.chat.prompt_ids(p)) for p in run.prompts)
    room = run.student.max_length
    yield (
        f"prompts   {len(lengths)} to train on, {len(run.held_out)} held out; "
        f"{lengths[len(lengths) // 2]} tokens in the middle, {lengths[-1]} at most"
    )
    longest = lengths[-1] + run.config.rollout.max_new_tokens
    if room is not None and longest > room:
        yield f"WARNING   the longest prompt and rollout.max_new_tokens need {longest} positions; the model has {room}"


def _memory(run: LanguageContext) -> Iterator[str]:
    trained = sum(p.numel() for p in run.student.model.parameters())
    config = run.config
    follows = config.loss.signal.reads_teacher and not config.teacher.is_model and config.teacher.weights.type == "ema"
    copies = int(follows) + int(config.keeps_initial)
    kept = {id(model.model): model.model for _, model in run.named_teachers()}
    other = sum(p.numel() * p.element_size() for model in kept.values() for p in model.parameters())
    # Weights, gradients and two moments in float32, then each frozen copy.
    state = trained * 4 * (4 + copies) + other
    yield f"memory    {state / 1e9:.2f} GB for weights, gradients, optimizer and teachers, before activations"


def _teaching(run: LanguageContext) -> Iterator[str]:
    """Let the student roll out a few prompts and see what the teacher makes of them."""
    main = loss_terms(run)[0]
    samples = run.rollouts_per_prompt
    prompts = [p for p in run.prompts[: max(NUM_PROMPTS // samples, 1)] for _ in range(samples)]
    rollouts = run.sampler().rollout(prompts, seed=0)
    ours = summarise(rollouts)
    yield f"rollouts  {len(rollouts)} sampled: {_line(ours)}"
    assert main.view is not None
    signal = main.teacher.score(rollouts, main.view.segments(rollouts)).to(run.student.device)
    tokens = sum(r.num_tokens for r in rollouts)
    if len(signal):
        with torch.no_grad():
            where, states = read_hidden(run.student, student_readings(rollouts), run.config.loss.signal.layers(run))
            row_T = align(rollouts, where, signal)
            weight_T = torch.full((len(signal),), 1 / len(signal), device=run.student.device)
            loss = main.objective(states.take(row_T), signal, weight_T)
        what = run.config.loss.signal.label(run.config.loss.divergence.type)
        yield f"signal    {len(signal)} of {tokens} tokens, aligned; {what} {loss:.3f} a token"
    else:
        yield f"WARNING   no target for a token of these rollouts: {main.if_empty}"
    if run.teacher_model:
        theirs = summarise(run.sampler(model=run.teacher_model).rollout(prompts, 0))
        yield f"teacher   on the same prompts: {_line(theirs)}"
        if "accuracy" in ours and theirs["accuracy"] <= ours["accuracy"]:
            yield "WARNING   the teacher is no better than the student on these prompts"


def _size(model: torch.nn.Module) -> str:
    count = sum(p.numel() for p in model.parameters())
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _line(metrics: Metrics) -> str:
    return ", ".join(f"{name} {figure(name, value)}" for name, value in metrics.items())
