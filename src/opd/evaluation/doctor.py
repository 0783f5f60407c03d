"""Look at a run before it costs anything."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from opd.config import RunConfig
from opd.engines.hf import Sampling
from opd.evaluation.metrics import summarise
from opd.models.forward import align, student_readings
from opd.models.forward import read as read_hidden
from opd.models.language import LanguageModel
from opd.output.format import figure
from opd.parts import Parts, sampler_of, teachers_of
from opd.teachers.alignment import TokenTexts, match
from opd.terms import assemble_terms, layers_of
from opd.types import Metrics

NUM_PROMPTS = 32
"""Enough to see whether a teacher is better, little enough to take seconds on a small model."""


def findings(parts: Parts) -> Iterator[str]:
    """Roll out a few prompts and let the teacher score them; yields a line per finding.

    Raises:
        OpdError: the run cannot work.
    """
    yield from _facts(parts)
    yield from _lengths(parts)
    yield from _memory(parts)
    yield from _teaching(parts)


def _facts(parts: Parts) -> Iterator[str]:
    student, config = parts.student, parts.config
    template = "chat template" if parts.chat.has_template else "no chat template, prompts are plain text"
    yield f"student   {config.student}: {_size(student.model)} parameters, {len(student.tokenizer)} tokens, {template}"
    if parts.teacher:
        padded = f", heads of different sizes, compared on {parts.vocab_size} rows" if parts.vocab_size else ""
        vocabulary = f"same vocabulary{padded}" if config.loss.signal != "cross" else _common(parts, parts.teacher)
        yield f"teacher   {config.teacher.model}: {_size(parts.teacher.model)} parameters, {vocabulary}"
    elif parts.experts and config.teacher.models:
        for name, expert in config.teacher.models.items():
            reads = ", ".join(expert.domains or (name,))
            yield f"teacher   {name}: {expert.model}, {_size(parts.experts[name].model)} parameters, reads {reads}"
        yield f"teachers  {len(config.teacher.models)}, of which {parts.experts.in_memory} at a time in memory"
    elif not config.loss.reads_teacher:
        yield f"teacher   none; loss.signal is {config.loss.signal}"
    else:
        yield f"teacher   the student's own weights, {config.teacher.weights}; view: {config.teacher.view.kind}"


def _common(parts: Parts, teacher: LanguageModel) -> str:
    ours, theirs = parts.student.tokenizer, teacher.tokenizer
    common = match(TokenTexts(ours), TokenTexts(theirs), opening=False)[0]
    return f"{len(theirs)} tokens of its own, {len(common)} of them also the student's"


def _lengths(parts: Parts) -> Iterator[str]:
    lengths = sorted(len(parts.chat.prompt_ids(p)) for p in parts.prompts)
    room = parts.student.max_length
    yield (
        f"prompts   {len(lengths)} to train on, {len(parts.held_out)} held out; "
        f"{lengths[len(lengths) // 2]} tokens in the middle, {lengths[-1]} at most"
    )
    longest = lengths[-1] + parts.config.rollout.max_new_tokens
    if room is not None and longest > room:
        yield f"WARNING   the longest prompt and rollout.max_new_tokens need {longest} positions; the model has {room}"


def _memory(parts: Parts) -> Iterator[str]:
    trained = sum(p.numel() for p in parts.student.model.parameters())
    config = parts.config
    copies = int(config.teacher.weights == "ema") + int(_keeps_initial(config))
    kept = {id(model.model): model.model for _, model in teachers_of(parts)}
    other = sum(p.numel() * p.element_size() for model in kept.values() for p in model.parameters())
    # Weights, gradients and two moments in float32, then each frozen copy.
    state = trained * 4 * (4 + copies) + other
    yield f"memory    {state / 1e9:.2f} GB for weights, gradients, optimizer and teachers, before activations"


def _keeps_initial(config: RunConfig) -> bool:
    own = config.teacher.weights == "frozen" and config.loss.reads_teacher
    return own or config.loss.anchor > 0 or config.loss.sampled.scale != 1


def _teaching(parts: Parts) -> Iterator[str]:
    """Let the student roll out a few prompts and see what the teacher makes of them."""
    terms, _, _ = assemble_terms(parts)
    main = terms[0]
    samples = parts.config.rollout.samples
    prompts = [p for p in parts.prompts[: max(NUM_PROMPTS // samples, 1)] for _ in range(samples)]
    rollouts = sampler_of(parts, Sampling(), held_out=False).rollout(prompts, seed=0)
    ours = summarise(rollouts)
    yield f"rollouts  {len(rollouts)} sampled: {_line(ours)}"
    assert main.view is not None
    signal = main.teacher.score(rollouts, main.view.segments(rollouts)).to(parts.student.device)
    tokens = sum(r.num_tokens for r in rollouts)
    if len(signal):
        with torch.no_grad():
            where, states = read_hidden(parts.student, student_readings(rollouts), layers_of(parts))
            row_T = align(rollouts, where, signal)
            weight_T = torch.full((len(signal),), 1 / len(signal), device=parts.student.device)
            loss = main.objective(states.take(row_T), signal, weight_T)
        what = parts.config.loss.divergence if parts.config.loss.reads_teacher else "loss"
        measured = f"{what} {loss:.3f} a token"
        yield f"signal    {len(signal)} of {tokens} tokens, aligned; {measured}"
    else:
        yield f"WARNING   no target for a token of these rollouts: {main.if_empty}"
    if parts.teacher:
        theirs = summarise(sampler_of(parts, Sampling(), held_out=False, model=parts.teacher).rollout(prompts, 0))
        yield f"teacher   on the same prompts: {_line(theirs)}"
        if "accuracy" in ours and theirs["accuracy"] <= ours["accuracy"]:
            yield "WARNING   the teacher is no better than the student on these prompts"


def _size(model: torch.nn.Module) -> str:
    count = sum(p.numel() for p in model.parameters())
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _line(metrics: Metrics) -> str:
    return ", ".join(f"{name} {figure(name, value)}" for name, value in metrics.items())
