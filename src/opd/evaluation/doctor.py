"""``opd doctor``: check a run on a few prompts before training."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import torch

from opd.axes.engines import EngineConfig
from opd.config.optimizer import LanguageOptimizerConfig
from opd.evaluation.evaluate import MAX_TOKENS, mean_loss
from opd.evaluation.memory import estimate
from opd.evaluation.metrics import summarise
from opd.language.checks import other_ends, padded
from opd.language.context import LanguageContext
from opd.language.terms import loss_terms
from opd.models.adapters import adapted, settings_of
from opd.models.language import LanguageModel
from opd.models.weights import trained
from opd.output.format import format_value
from opd.servers.advice import cost, fits, found
from opd.teachers.alignment import TokenTexts, match
from opd.types import Metrics, View

NUM_PROMPTS = 32
"""Number of prompts to roll out: enough to compare teacher and student, seconds on a small model."""

ANSWER_CHARACTERS = 400
"""Length at which a hint author's answer is cut."""


def findings(run: LanguageContext) -> Iterator[str]:
    """Roll out a few prompts, score them with the teacher, and yield one line per finding.

    Raises:
        OpdError: the run cannot work.
    """
    yield from _facts(run)
    yield from found(run)
    yield from _ends(run)
    yield from _lengths(run)
    yield from _evaluations(run)
    yield from _memory(run)
    yield from _teaching(run)


def _facts(run: LanguageContext) -> Iterator[str]:
    student, config = run.student, run.config
    template = "chat template" if run.chat.has_template else "no chat template; prompts are plain text"
    yield f"student   {config.student}: {_size(student.model)} parameters, {len(student.tokenizer)} tokens, {template}"
    trains = sum(p.numel() for p in trained(student.model).values())
    if adapted(student.model):
        kind = settings_of(student.model).peft_type.value
        yield f"adapter   {kind}: {trains:,} parameters train, on a frozen base"
    ends, eos = run.chat.turn_end_ids, student.tokenizer.eos_token_id
    note = "" if ends[-1:] == (eos,) else f"; not the tokenizer's EOS token {student.tokenizer.eos_token!r}"
    yield f"turn end  {student.tokenizer.decode(ends)!r}{note}"
    if run.teacher_model:
        heads = [len(m.model.get_output_embeddings().weight) for m in (student, run.teacher_model)]
        padded = f", output heads of {heads[0]} and {heads[1]} rows, read up to the last token: {student.rows} rows"
        padded = padded if max(heads) > student.rows else ""
        tokens = f"{student.limit} tokens shared with the student" if student.limit else "same vocabulary"
        vocabulary = f"{tokens}{padded}" if config.loss.signal.same_tokenizer else _common(run, run.teacher_model)
        yield f"teacher   {config.teacher.model}: {_size(run.teacher_model.model)} parameters, {vocabulary}"
    elif run.pool and config.teacher.models:
        for name, expert in config.teacher.models.items():
            domains = ", ".join(expert.domains or (name,))
            yield f"teacher   {name}: {expert.model}, {_size(run.pool[name].model)} parameters, scores {domains}"
        yield f"teachers  {len(config.teacher.models)}; at most {run.pool.in_memory} in memory at a time"
    elif not config.loss.signal.reads_teacher:
        yield f"teacher   none; loss.signal is {config.loss.signal.type}"
    else:
        yield f"teacher   the student's own weights, {config.teacher.weights.type}; view: {config.teacher.view.type}"


def _ends(run: LanguageContext) -> Iterator[str]:
    """What ends a turn, and teachers that end it otherwise."""
    stops = run.stops(run.student)
    named = [repr(run.student.tokenizer.decode([i])) for i in sorted(stops.ids)]
    yield f"stops     {', '.join([*named, *(f'the text {text!r}' for text in stops.texts)])}"
    yield from (f"WARNING   {sentence}" for sentence in other_ends(run))


def _common(run: LanguageContext, teacher: LanguageModel) -> str:
    ours, theirs = run.student.tokenizer, teacher.tokenizer
    common = match(TokenTexts(ours), TokenTexts(theirs), opening=False)[0]
    return f"another tokenizer with {len(theirs)} tokens, {len(common)} of them shared with the student"


def _evaluations(run: LanguageContext) -> Iterator[str]:
    every, steps = run.config.eval.every, run.config.optimizer.steps
    if run.held_out and every > steps:
        yield (
            f"evaluation only at the start and the end, as eval.every={every} is above optimizer.steps={steps}; guards "
            "and the best weights see nothing in between"
        )


def _lengths(run: LanguageContext) -> Iterator[str]:
    lengths = sorted(run.training.lengths)
    yield (
        f"prompts   {len(lengths)} for training, {len(run.held_out)} held out; "
        f"median {lengths[len(lengths) // 2]} tokens, longest {lengths[-1]}"
    )
    for note in run.notes:
        warned = note.removeprefix("WARNING ")
        yield f"WARNING   {warned}" if warned != note else f"          {note}"


def _memory(run: LanguageContext) -> Iterator[str]:
    config, need = run.config, estimate(run)
    stays = {"weights": need.weights, "optimizer": need.moments, "copies": need.copies, "teachers": need.teachers}
    update = {"gradients": need.gradients, "signal": need.signal, "activations": need.activations, "loss": need.loss}
    yield f"memory    at most {_bytes(need.peak)}: {_bytes(need.state)} all the time ({_parts(stays)}), and in turn"
    yield (
        f"          rollouts {_bytes(need.rollout)}, teacher {_bytes(need.signal + need.reading)}, update "
        f"{_bytes(need.update)} ({_parts(update)})"
    )
    if run.student.device.type == "cuda":
        room = torch.cuda.get_device_properties(run.student.device).total_memory
        yield from _too_large(need.peak, room)
    yield (
        f"passes    student: {_student_pass(config.optimizer)}; teacher: {config.teacher.max_tokens:,} tokens "
        f"(teacher.max_tokens); decoding: {_decoding(config.rollout.engine)}; evaluation: {MAX_TOKENS:,} tokens"
    )
    for note in padded(run):
        yield f"padding   {note}"


def _student_pass(optimizer: LanguageOptimizerConfig) -> str:
    tokens = f"{optimizer.micro_tokens:,} tokens (optimizer.micro_tokens)" if optimizer.micro_tokens else ""
    if optimizer.micro_batch:
        return f"{optimizer.micro_batch} rollouts (optimizer.micro_batch)" + (f", at most {tokens}" if tokens else "")
    return tokens or "all rollouts at once (optimizer.micro_batch, optimizer.micro_tokens)"


def _too_large(peak: float, room: float) -> Iterator[str]:
    if peak > room:
        yield (
            f"WARNING   the device has {_bytes(room)}. Fix: look which part above is the largest; an update shrinks by "
            "optimizer.micro_tokens or optimizer.gradient_checkpointing=true, a teacher by teacher.max_tokens or "
            "dtype=bfloat16, rollouts by rollout.engine.max_rows"
        )


def _decoding(engine: EngineConfig) -> str:
    rows = getattr(engine, "max_rows", None)
    return f"{rows} rows (rollout.engine.max_rows)" if rows else f"by {engine.type}"


def _teaching(run: LanguageContext) -> Iterator[str]:
    """Roll out a few prompts, check the teacher's signal, and compare accuracies."""
    main = loss_terms(run)[0]
    samples = run.config.rollout.rollouts_per_prompt
    prompts = [p for p in run.prompts[: max(NUM_PROMPTS // samples, 1)] for _ in range(samples)]
    started = time.perf_counter()
    rollouts = run.sampler().rollout(prompts, seed=0)
    seconds = {"rollout_s": time.perf_counter() - started}
    ours = summarise(rollouts)
    yield f"rollouts  {len(rollouts)} sampled: {_line(ours)}"
    if ours["truncation_rate"] == 1:
        yield (
            "WARNING   no rollout ended before its limit. Fix: raise rollout.max_new_tokens, or check that the student "
            "ends its turns with the turn end above"
        )
    assert main.view is not None
    segments = main.view.segments(rollouts)
    yield from _hints(main.view)
    started = time.perf_counter()
    signal = main.teacher.score(rollouts, segments).to(run.student.device).arrived()
    seconds["teacher_s"] = time.perf_counter() - started
    if run.teacher_model and run.teacher_model.is_served:
        yield from fits(signal)
    tokens = sum(r.num_tokens for r in rollouts)
    if len(signal):
        max_tokens, layers = run.config.teacher.max_tokens, run.config.loss.signal.layers(run)
        started = time.perf_counter()
        loss = mean_loss(run.student, rollouts, signal, main.objective, max_tokens=max_tokens, layers=layers)
        yield from cost(run, tokens=len(signal), pass_s=time.perf_counter() - started, **seconds)
        name = run.config.loss.signal.label(run.config.loss.divergence.type)
        yield f"signal    {len(signal)} of {tokens} tokens, aligned; {name} {loss:.3f} nats per token"
    else:
        yield f"WARNING   no token of these rollouts has a target: {main.if_empty}"
    if run.teacher_model and not run.teacher_model.is_served:
        theirs = summarise(run.sampler(model=run.teacher_model).rollout(prompts, 0))
        yield f"teacher   on the same prompts: {_line(theirs)}"
        if "accuracy" in ours and theirs["accuracy"] <= ours["accuracy"]:
            yield "WARNING   the teacher's accuracy is not above the student's on these prompts"


def _hints(view: View) -> Iterator[str]:
    """What a hint view's author wrote, and one answer as it was written."""
    metrics: Metrics = getattr(view, "metrics", {})
    if metrics:
        counts = [f"{value:g} {name.partition('/')[2].replace('_', ' ')}" for name, value in metrics.items()]
        yield f"hints     {', '.join(counts)}"
    answer: str | None = getattr(getattr(view, "author", None), "last_answer", None)
    if answer is not None:
        yield f"answer    of the hint author: {answer[:ANSWER_CHARACTERS]!r}"
    if metrics.get("hints/unparsable", 0) > metrics.get("hints/written", 0):
        yield (
            "WARNING   most of the hint author's answers have no line 'turn N: …' or 'none'. Fix: state the format in "
            "its instruction, or raise its max_new_tokens"
        )


def _bytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _parts(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_bytes(size)}" for name, size in sizes.items() if size)


def _size(model: torch.nn.Module) -> str:
    count = sum(p.numel() for p in model.parameters())
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _line(metrics: Metrics) -> str:
    return ", ".join(f"{name} {format_value(name, value)}" for name, value in metrics.items())
