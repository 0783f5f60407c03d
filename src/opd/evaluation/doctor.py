"""``opd doctor``: check a run on a few prompts before training."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from opd.config import RunConfig
from opd.evaluation.evaluate import MAX_TOKENS, mean_loss
from opd.evaluation.metrics import summarise
from opd.models.language import LanguageModel
from opd.output.format import format_value
from opd.parts import Parts, sampler_of, teachers_of
from opd.teachers.alignment import TokenTexts, match
from opd.terms import assemble_terms, layers_of
from opd.types import Metrics, Sampling

NUM_PROMPTS = 32
"""Number of prompts to roll out: enough to compare teacher and student, seconds on a small model."""


def findings(parts: Parts) -> Iterator[str]:
    """Roll out a few prompts, score them with the teacher, and yield one line per finding.

    Raises:
        OpdError: the run cannot work.
    """
    yield from _facts(parts)
    yield from _lengths(parts)
    yield from _memory(parts)
    yield from _teaching(parts)


def _facts(parts: Parts) -> Iterator[str]:
    student, config = parts.student, parts.config
    template = "chat template" if parts.chat.has_template else "no chat template; prompts are plain text"
    yield f"student   {config.student}: {_size(student.model)} parameters, {len(student.tokenizer)} tokens, {template}"
    ends, eos = parts.chat.turn_end_ids, student.tokenizer.eos_token_id
    note = "" if ends[-1:] == (eos,) else f"; not the tokenizer's EOS token {student.tokenizer.eos_token!r}"
    yield f"turn end  {student.tokenizer.decode(ends)!r}{note}"
    if parts.teacher:
        padded = f", heads of different sizes, compared on {parts.vocab_size} rows" if parts.vocab_size else ""
        vocabulary = f"same vocabulary{padded}" if config.loss.signal != "cross" else _common(parts, parts.teacher)
        yield f"teacher   {config.teacher.model}: {_size(parts.teacher.model)} parameters, {vocabulary}"
    elif parts.experts and config.teacher.models:
        for name, expert in config.teacher.models.items():
            domains = ", ".join(expert.domains or (name,))
            yield f"teacher   {name}: {expert.model}, {_size(parts.experts[name].model)} parameters, scores {domains}"
        yield f"teachers  {len(config.teacher.models)}; at most {parts.experts.in_memory} in memory at a time"
    elif not config.loss.reads_teacher:
        yield f"teacher   none; loss.signal is {config.loss.signal}"
    else:
        yield f"teacher   the student's own weights, {config.teacher.weights}; view: {config.teacher.view.kind}"


def _common(parts: Parts, teacher: LanguageModel) -> str:
    ours, theirs = parts.student.tokenizer, teacher.tokenizer
    common = match(TokenTexts(ours), TokenTexts(theirs), opening=False)[0]
    return f"another tokenizer with {len(theirs)} tokens, {len(common)} of them shared with the student"


def _lengths(parts: Parts) -> Iterator[str]:
    lengths = sorted(len(parts.chat.prompt_ids(p)) for p in parts.prompts)
    room = parts.student.max_length
    yield (
        f"prompts   {len(lengths)} for training, {len(parts.held_out)} held out; "
        f"median {lengths[len(lengths) // 2]} tokens, longest {lengths[-1]}"
    )
    longest = lengths[-1] + parts.config.rollout.max_new_tokens
    if room is not None and longest > room:
        yield (
            f"WARNING   longest prompt plus rollout.max_new_tokens need {longest} positions; the model has {room}. "
            "Fix: lower rollout.max_new_tokens or drop long prompts"
        )


def _memory(parts: Parts) -> Iterator[str]:
    trained = sum(p.numel() for p in parts.student.model.parameters())
    config = parts.config
    copies = int(config.teacher.weights == "ema") + int(_keeps_initial(config))
    kept = {id(model.model): model.model for _, model in teachers_of(parts)}
    other = sum(p.numel() * p.element_size() for model in kept.values() for p in model.parameters())
    # Weights, gradients and two moments in float32, then each frozen copy.
    state = trained * 4 * (4 + copies) + other
    yield f"memory    {state / 1e9:.2f} GB for weights, gradients, optimizer and teachers, without activations"
    micro_batch = config.optimizer.micro_batch
    yield (
        f"passes    student: {f'{micro_batch} rollouts' if micro_batch else 'all rollouts at once'} "
        f"(optimizer.micro_batch); teacher: {config.teacher.max_tokens:,} tokens (teacher.max_tokens); "
        f"decoding: {config.rollout.max_rows} rows (rollout.max_rows); evaluation: {MAX_TOKENS:,} tokens"
    )


def _keeps_initial(config: RunConfig) -> bool:
    own = config.teacher.weights == "frozen" and config.loss.reads_teacher
    return own or config.loss.anchor > 0 or config.loss.sampled.scale != 1


def _teaching(parts: Parts) -> Iterator[str]:
    """Roll out a few prompts, check the teacher's signal, and compare accuracies."""
    terms, _, _ = assemble_terms(parts)
    main = terms[0]
    samples = parts.config.rollout.samples
    prompts = [p for p in parts.prompts[: max(NUM_PROMPTS // samples, 1)] for _ in range(samples)]
    rollouts = sampler_of(parts, Sampling(), held_out=False).rollout(prompts, seed=0)
    ours = summarise(rollouts)
    yield f"rollouts  {len(rollouts)} sampled: {_line(ours)}"
    if ours["truncation_rate"] == 1:
        yield (
            "WARNING   no rollout ended before its limit. Fix: raise rollout.max_new_tokens, or check that the student "
            "ends its turns with the turn end above"
        )
    assert main.view is not None
    signal = main.teacher.score(rollouts, main.view.segments(rollouts)).to(parts.student.device)
    tokens = sum(r.num_tokens for r in rollouts)
    if len(signal):
        max_tokens, layers = parts.config.teacher.max_tokens, layers_of(parts)
        loss = mean_loss(parts.student, rollouts, signal, main.objective, max_tokens=max_tokens, layers=layers)
        name = parts.config.loss.divergence if parts.config.loss.reads_teacher else "loss"
        yield f"signal    {len(signal)} of {tokens} tokens, aligned; {name} {loss:.3f} nats per token"
    else:
        yield f"WARNING   no token of these rollouts has a target: {main.if_empty}"
    if parts.teacher:
        theirs = summarise(sampler_of(parts, Sampling(), held_out=False, model=parts.teacher).rollout(prompts, 0))
        yield f"teacher   on the same prompts: {_line(theirs)}"
        if "accuracy" in ours and theirs["accuracy"] <= ours["accuracy"]:
            yield "WARNING   the teacher's accuracy is not above the student's on these prompts"


def _size(model: torch.nn.Module) -> str:
    count = sum(p.numel() for p in model.parameters())
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _line(metrics: Metrics) -> str:
    return ", ".join(f"{name} {format_value(name, value)}" for name, value in metrics.items())
