"""From a run file to the parts of a loop. Everything that can be refused is refused here, before any step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opd.chat import Chat
from opd.config import EvalConfig, LossConfig, PromptsConfig, RunConfig, UnsureConfig
from opd.data import from_rows, load_prompts, read_jsonl
from opd.errors import ConfigError, DataError, ModelError
from opd.evaluation import Evaluation
from opd.log import RunLog
from opd.loop import Loop, Objective, Term
from opd.losses import Support, check_divergence, clipped
from opd.losses.cross import Matched
from opd.models import LanguageModel, check_vocabulary, load, stop_ids
from opd.objectives import (
    CrossEntropy,
    CrossTokenizer,
    DirectEstimate,
    FullVocabulary,
    HiddenStates,
    PolicyGradient,
)
from opd.positions import Positions, Unsure
from opd.reading import sort_key
from opd.rollout.answers import ReferenceAnswers, WithAnswers
from opd.rollout.curriculum import Uniform
from opd.rollout.hf import HFEngine, Sampling
from opd.rollout.mixture import Mixture
from opd.rollout.recorded import Recording, record, save
from opd.rollout.recorded import load as read_recording
from opd.rollout.sampler import Sampler
from opd.teachers.alignment import TokenTexts, match
from opd.teachers.cross import CrossTeacher
from opd.teachers.experience import gather_experience
from opd.teachers.hidden import HiddenTeacher, fit_bridge, matching_layers
from opd.teachers.hint_http import HttpAuthor
from opd.teachers.hints import ModelAuthor, RulesAuthor
from opd.teachers.local import Answers, EmaWeights, LocalTeacher, Once, frozen_copy, states_of
from opd.teachers.prompt_views import ContextView, FeedbackView, PrivilegedView
from opd.teachers.sampled import Outcome, SampledTeacher
from opd.teachers.views import Among, HintView, PlainView
from opd.training.checkpoint import Checkpoints
from opd.training.guards import Guards
from opd.training.optim import Optimizer
from opd.types import HintAuthor, Prompt, Roller, Task, Teacher, View

SMALL_MODEL = 20_000_000
"""Parameters below which more than one CPU thread costs more in waiting than it saves."""

CONTEXT_FILE = "context.txt"
"""In the run's folder: what the teacher of a context view read."""
LONGEST = 32
"""Prompts, by characters, whose tokens are counted before the run; a run that meets a longer one later stops there."""


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Parts given from Python instead of named in the run file."""

    student: LanguageModel | None = None
    teacher: LanguageModel | None = None
    prompts: Sequence[Any] | None = None
    task: Task | None = None


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run consists of before it is put into a loop; ``opd doctor`` looks at the same."""

    config: RunConfig
    student: LanguageModel
    chat: Chat
    prompts: list[Prompt]
    curriculum: Uniform
    task: Task | None
    held_out: list[Prompt]
    held_out_task: Task | None
    teacher: LanguageModel | None
    """The model of ``teacher.model``; None for the self-teachers."""
    author: HintAuthor | None
    vocab_size: int | None
    """Where heads are padded to different sizes: how many rows both have."""
    context: str = ""
    """What the teacher of a context view reads."""


def device_of(config: RunConfig) -> str:
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
    student = objects.student or load(config.student, key="student", device=device)
    student = _with_precision(student, config)
    size = sum(p.numel() for p in student.model.parameters())
    if config.threads or size < SMALL_MODEL:
        torch.set_num_threads(config.threads or 1)
    chat = Chat(student.tokenizer)
    prompts, task = _prompts(config.prompts, objects, chat)
    _check_answers(config, prompts, objects.task or task)
    trained = prompts[: config.rollout.offline] if config.rollout.offline else prompts
    curriculum = Uniform(trained, batch=config.rollout.batch, samples=config.rollout.samples, seed=config.seed)
    held_out: list[Prompt] = []
    held_out_task: Task | None = None
    if config.eval.prompts:
        held_out, held_out_task = load_prompts(config.eval.prompts, key="eval.prompts", has_template=chat.has_template)
    teacher, vocab_size = None, None
    if config.teacher.weights == "model":
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
        author=_author(config, device),
        vocab_size=vocab_size,
    )
    _check_lengths(parts)
    return dataclasses.replace(parts, context=context_of(parts))


def assemble(parts: Parts, log: RunLog) -> Loop:
    """Put the parts into a loop that is ready to run from step 0."""
    config, student = parts.config, parts.student
    torch.manual_seed(config.seed)
    student.model.requires_grad_(True)
    if config.optimizer.gradient_checkpointing:
        student.model.gradient_checkpointing_enable()
    terms, scoring, average = assemble_terms(parts)
    sampler = _training_sampler(parts)
    if config.rollout.offline:
        sampler = _recording(parts, terms[0], sampler)
        terms[0] = dataclasses.replace(terms[0], teacher=sampler)
    return Loop(
        student=student,
        sampler=sampler,
        curriculum=parts.curriculum,
        terms=terms,
        optimizer=Optimizer(
            student.model,
            **config.optimizer.model_dump(exclude={"micro_batch", "gradient_checkpointing"}),
        ),
        guards=Guards(**config.guards.model_dump(), num_prompts=max(len(parts.held_out), 1)),
        checkpoints=Checkpoints(Path(config.out) / "checkpoints", every=config.checkpoint.every),
        log=log,
        steps=config.optimizer.steps,
        seed=config.seed,
        micro_batch=config.optimizer.micro_batch,
        layers=layers_of(parts),
        average=average,
        evaluate=evaluation(parts, scoring),
        evaluate_every=config.eval.every,
    )


def assemble_terms(parts: Parts) -> tuple[list[Term], LanguageModel | None, EmaWeights | None]:
    """The loss: its terms, the model that teaches (None for supervised training), and the running average."""
    config, view = parts.config, view_of(parts)
    everything: View = PlainView()
    if config.loss.gold:  # the reference answers in the batch are for the supervised term alone
        view, everything = Among(view, answers=False), Among(everything, answers=False)
    scoring, reference, average = _weights(parts)
    name = "outcome" if config.loss.signal == "reward" else "distill"
    terms = [Term(name, *_main(parts, view, scoring, reference), config.loss.weight, _positions(parts))]
    if config.loss.unsure:
        terms.append(_unsure(parts, terms[0], config.loss.unsure))
    if config.loss.gold:
        supervised = CrossEntropy(chunk_tokens=config.loss.chunk_tokens)
        terms.append(Term("gold", Answers(), Among(PlainView(), answers=True), supervised, weight=config.loss.gold))
    if config.loss.anchor:
        assert reference is not None
        spared = None if config.teacher.view.hint else everything
        # Reverse: it is bounded where the student gives up what the reference liked, so it can unlearn a habit.
        pull = FullVocabulary(divergence="reverse_kl", chunk_tokens=config.loss.chunk_tokens)
        terms.append(Term("anchor", _reader(parts, reference), spared, pull, weight=config.loss.anchor))
    if config.loss.outcome:
        outcome = Outcome(by_deviation=config.loss.sampled.by_deviation)
        terms.append(Term("outcome", outcome, everything, _policy_gradient(config.loss), weight=config.loss.outcome))
    return terms, scoring, average


def _main(
    parts: Parts, view: View, scoring: LanguageModel | None, reference: LanguageModel | None
) -> tuple[Teacher, View, Objective]:
    """The term that ``loss.signal`` names."""
    loss = parts.config.loss
    if loss.signal == "tokens":
        return Answers(), view, CrossEntropy(temperature=loss.temperature, chunk_tokens=loss.chunk_tokens)
    if loss.signal == "reward":
        return Outcome(by_deviation=loss.sampled.by_deviation), view, _policy_gradient(loss)
    assert scoring is not None
    if loss.signal == "hidden":
        teacher, objective = _hidden(parts, view, scoring)
        return teacher, view, objective
    if loss.signal == "cross":
        return _cross_teacher(parts, scoring), view, _cross_objective(parts, scoring)
    reader = _reader(parts, scoring)
    if loss.signal != "sampled":
        support = Support(**loss.top_k.model_dump()) if loss.top_k else None
        return reader, view, dataclasses.replace(_divergence(parts, loss.divergence), support=support, clip=loss.clip)
    base = _reader(parts, reference) if reference is not None and loss.sampled.scale != 1 else None
    own = _reader(parts, parts.student) if loss.sampled.baseline else None
    sampled = SampledTeacher(
        Once(reader), reference=base, student=own, scale=loss.sampled.scale, temperature=loss.temperature
    )
    if loss.sampled.estimator == "policy_gradient":
        return sampled, view, _policy_gradient(loss)
    estimate = DirectEstimate(
        estimator=loss.sampled.estimator, temperature=loss.temperature, chunk_tokens=loss.chunk_tokens
    )
    return sampled, view, estimate


def _unsure(parts: Parts, main: Term, config: UnsureConfig) -> Term:
    """Forward KL where the teacher is unsure; it reads no more than the main term's teacher has read already."""
    assert isinstance(main.teacher, SampledTeacher)
    where = Unsure(entropy=config.entropy, temperature=parts.config.loss.temperature)
    support = Support(config.k, whose="teacher", rest="tail")
    objective = dataclasses.replace(_divergence(parts, "forward_kl"), support=support)
    return Term("unsure", main.teacher.teacher, main.view, objective, config.weight, where)


def layers_of(parts: Parts) -> list[int]:
    """The student's blocks whose states the loss is about."""
    loss = parts.config.loss
    if loss.signal != "hidden":
        return []
    known = parts.student.num_layers
    layers = list(loss.hidden.layers or range(1, known + 1))
    for layer in layers:
        if not 1 <= layer <= known:
            raise ConfigError(f"loss.hidden.layers: the student has blocks 1 to {known}, and no {layer}")
    return layers


def _hidden(parts: Parts, view: View, scoring: LanguageModel) -> tuple[Teacher, Objective]:
    """A teacher of hidden states; the bridge to one of another shape is fitted on the student's first rollouts."""
    config, student, layers = parts.config.loss.hidden, parts.student, layers_of(parts)
    theirs = matching_layers(layers, student.num_layers, scoring.num_layers)
    shapes = [(m.num_layers, m.head_VD.shape[1]) for m in (student, scoring)]
    max_tokens = parts.config.teacher.max_tokens
    if config.bridge is None:
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"loss.signal=hidden: the student has {shapes[0][0]} blocks of width {shapes[0][1]} and teacher.model "
                f"{shapes[1][0]} of width {shapes[1][1]}; set loss.hidden.bridge={{rank: 8}}"
            )
        return HiddenTeacher(scoring, theirs, max_tokens=max_tokens), HiddenStates(normalise=config.normalise)
    prompts = parts.prompts[: config.bridge.prompts]
    rollouts = sampler_of(parts, Sampling(), held_out=False).rollout(prompts, seed=parts.config.seed)
    segments = view.segments(rollouts)
    where, own = states_of(student, rollouts, PlainView().segments(rollouts), max_tokens=max_tokens, layers=layers)
    there, other = states_of(scoring, rollouts, segments, max_tokens=max_tokens, layers=theirs)
    own = own.take(torch.isin(sort_key(where), sort_key(there)))
    assert own.layers_TKD is not None
    assert other.layers_TKD is not None
    ours, target = fit_bridge(own.layers_TKD, other.layers_TKD, config.bridge.rank)
    teacher = HiddenTeacher(scoring, theirs, projection=target, max_tokens=max_tokens)
    return teacher, HiddenStates(projection=ours, normalise=config.normalise)


def _reader(parts: Parts, model: LanguageModel) -> LocalTeacher:
    return LocalTeacher(model, max_tokens=parts.config.teacher.max_tokens)


def _cross_teacher(parts: Parts, teacher: LanguageModel) -> CrossTeacher:
    return CrossTeacher(
        parts.student.tokenizer,
        teacher,
        skip_ids=stop_ids(parts.student),
        max_tokens=parts.config.teacher.max_tokens,
        temperature=parts.config.loss.temperature,
    )


def _cross_objective(parts: Parts, teacher: LanguageModel) -> CrossTokenizer:
    loss, sides = parts.config.loss, (TokenTexts(parts.student.tokenizer), TokenTexts(teacher.tokenizer))

    def matched(*, opening: bool) -> Matched:
        ours, theirs = (torch.tensor(ids, device=parts.student.device) for ids in match(*sides, opening=opening))
        share = len(theirs) / len(teacher.tokenizer)
        cross = loss.cross
        weight = share if cross.matched_weight is None else cross.matched_weight
        rest = 1 - share if cross.unmatched_weight is None else cross.unmatched_weight
        return Matched(ours, theirs, weight, rest)

    return CrossTokenizer(
        opening=matched(opening=True),
        inside=matched(opening=False),
        pieces=loss.cross.pieces,
        beta=loss.beta,
        temperature=loss.temperature,
        chunk_tokens=loss.chunk_tokens,
    )


def _policy_gradient(loss: LossConfig) -> PolicyGradient:
    shape = loss.sampled.model_dump(include={"discount", "max_advantage", "clip", "max_ratio"})
    return PolicyGradient(**shape, temperature=loss.temperature, chunk_tokens=loss.chunk_tokens)


def evaluation(parts: Parts, scoring: LanguageModel | None) -> Evaluation | None:
    """What the run measures; None if the run file asks for nothing."""
    config: EvalConfig = parts.config.eval
    texts = _texts(config.text, parts) if config.text else []
    if not parts.held_out and not texts:
        return None
    wanted = config.divergence if config.divergence is not None else parts.held_out_task is None
    if parts.config.loss.signal == "cross":
        wanted = False  # no reverse KL between two vocabularies
    divergence = None
    if wanted and scoring is not None and parts.held_out:
        view = view_of(parts)
        if isinstance(view, HintView):
            raise ConfigError(
                "eval.divergence: a hint view has no target where no hint is written; leave it out and give "
                "eval.prompts with answers"
            )
        divergence = (LocalTeacher(scoring), view, _divergence(parts, "reverse_kl"))
    return Evaluation(
        student=parts.student,
        prompts=parts.held_out,
        greedy=sampler_of(parts, Sampling(temperature=0), held_out=True),
        sampled=sampler_of(parts, Sampling(), held_out=True),
        samples=config.samples,
        divergence=divergence,
        texts=texts,
        compared=_compared(parts, scoring),
        teacher=_teacher_sampler(parts),
    )


def _compared(parts: Parts, scoring: LanguageModel | None) -> tuple[LocalTeacher, View, int] | None:
    """Teacher, view and prompts of the diagnostics; none for another vocabulary, or where each look costs requests."""
    number, author = parts.config.eval.diagnostics, parts.config.teacher.view.author
    asks = author is not None and author.kind == "http"
    loss = parts.config.loss
    if not number or scoring is None or not loss.reads_teacher or loss.signal == "cross" or asks:
        return None
    return _reader(parts, scoring), view_of(parts), number


def _teacher_sampler(parts: Parts) -> Sampler | None:
    """Rolls out the teacher where it is a model of its own and answers can be checked."""
    if parts.teacher is None or parts.held_out_task is None or not parts.config.eval.diagnostics:
        return None
    return sampler_of(parts, Sampling(temperature=0), held_out=True, model=parts.teacher)


def sampler_of(parts: Parts, sampling: Sampling, *, held_out: bool, model: LanguageModel | None = None) -> Sampler:
    """A sampler in the run's environment, from the student or another model with its tokenizer.

    With ``loss.signal=cross`` the other model has its own tokenizer, template and stop tokens.
    """
    rollout = parts.config.rollout
    language_model = model or parts.student
    speaker = language_model if parts.config.loss.signal == "cross" else parts.student
    budget = parts.config.eval.max_new_tokens if held_out else None
    return Sampler(
        HFEngine(language_model, sampling=sampling, stop_ids=stop_ids(speaker), max_rows=rollout.max_rows),
        parts.chat if speaker is parts.student else Chat(speaker.tokenizer),
        parts.held_out_task if held_out else parts.task,
        max_new_tokens=budget or rollout.max_new_tokens,
        max_turns=rollout.max_turns,
        grow_every=None if held_out else rollout.turns_grow_every,
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
        return config.text
    gathered = Path(parts.config.out) / CONTEXT_FILE
    if config.experience and not gathered.exists():
        assert parts.author is not None
        prompts = parts.prompts[: config.experience.prompts]
        rollouts = sampler_of(parts, Sampling(), held_out=False).rollout(prompts, seed=parts.config.seed)
        return gather_experience(rollouts, parts.author, items=config.experience.items)
    path = Path(config.file) if config.file else gathered
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"teacher.view.context.file: cannot read '{path}': {error}") from None
    if not text:
        raise DataError(f"teacher.view.context.file: '{path}' is empty")
    return text


def _training_sampler(parts: Parts) -> Roller:
    rollout = parts.config.rollout
    if parts.config.loss.gold:
        return WithAnswers(_writer(parts, "student"), _answers(parts))
    if len(rollout.writers) == 1:
        return _writer(parts, rollout.policy)
    student, other = _writer(parts, "student"), _writer(parts, rollout.other)
    return Mixture(student, other, share=rollout.off_policy, first=rollout.off_policy_steps)


def _recording(parts: Parts, main: Term, roller: Roller) -> Recording:
    """The initial student's rollouts and the teacher's word on them; a run that goes on reads what it has."""
    rollout, path = parts.config.rollout, Path(parts.config.out) / "recorded.jsonl"
    if not path.exists():
        assert isinstance(main.teacher, SampledTeacher)
        assert main.view is not None
        prompts, sizes = parts.prompts[: rollout.offline], {"samples": rollout.samples, "batch": rollout.batch}
        save(record(roller, main.teacher, main.view, prompts, **sizes, seed=parts.config.seed), path)
    return Recording(read_recording(path, parts.prompts))


def _writer(parts: Parts, who: str) -> Roller:
    rollout = parts.config.rollout
    if who == "answers":
        return _answers(parts)
    sampling = Sampling(temperature=rollout.temperature, top_p=rollout.top_p, top_k=rollout.top_k)
    sampler = sampler_of(parts, sampling, held_out=False, model=parts.teacher if who == "teacher" else None)
    if rollout.prefix and parts.teacher:
        sampler.prefix = sampler_of(parts, sampling, held_out=False, model=parts.teacher).engine, rollout.prefix
    return sampler


def _answers(parts: Parts) -> ReferenceAnswers:
    return ReferenceAnswers(parts.chat, stop=min(stop_ids(parts.student)), max_length=parts.student.max_length)


def _positions(parts: Parts) -> Positions | None:
    config, tokenizer = parts.config.loss.positions, parts.student.tokenizer
    skipped = set(tokenizer.all_special_ids) if config.skip_special else set()
    for token in config.skip_tokens:
        if token not in tokenizer.get_vocab():
            raise ConfigError(f"loss.positions.skip_tokens: the student's tokenizer has no token '{token}'")
        skipped.add(tokenizer.get_vocab()[token])
    if config == type(config)():
        return None
    return Positions(skip_ids=frozenset(skipped), **config.model_dump(exclude={"skip_special", "skip_tokens"}))


def _weights(parts: Parts) -> tuple[LanguageModel | None, LanguageModel | None, EmaWeights | None]:
    """The model that teaches, the anchor's reference and the running average; copies are shared where they can be."""
    config = parts.config
    compares = config.loss.anchor > 0 or config.loss.sampled.scale != 1
    frozen = config.teacher.weights == "frozen" and config.loss.reads_teacher
    initial = frozen_copy(parts.student) if compares or frozen else None
    reference = initial if compares else None
    if config.teacher.weights == "ema":
        copy = frozen_copy(parts.student)
        return copy, reference, EmaWeights(copy.model, parts.student.model, config.teacher.ema_decay)
    scoring = {"frozen": initial, "live": parts.student, "model": parts.teacher}[config.teacher.weights]
    return scoring, reference, None


def _divergence(parts: Parts, name: str) -> FullVocabulary:
    loss = parts.config.loss
    return FullVocabulary(
        divergence=name,
        beta=loss.beta,
        temperature=loss.temperature,
        vocab_size=parts.vocab_size,
        chunk_tokens=loss.chunk_tokens,
    )


def _with_precision(model: LanguageModel, config: RunConfig) -> LanguageModel:
    return dataclasses.replace(model, autocast=torch.bfloat16 if config.dtype == "bfloat16" else None)


def _prompts(config: PromptsConfig, objects: Objects, chat: Chat) -> tuple[list[Prompt], Task | None]:
    given = objects.prompts
    if given is None:
        return load_prompts(config, key="prompts", has_template=chat.has_template)
    if all(isinstance(p, Prompt) for p in given):
        return list(given), objects.task
    rows = [{"prompt": p} if isinstance(p, str) else p for p in given]
    return from_rows(rows, key="prompts", chat=chat.has_template)


def _check_answers(config: RunConfig, prompts: Sequence[Prompt], task: Task | None) -> None:
    rewarded = config.loss.outcome or config.loss.signal == "reward"
    if rewarded and task is None:
        what = "loss.outcome" if config.loss.outcome else "loss.signal=reward"
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
        if prompt.answer is None:
            raise DataError(f"prompts: prompt '{prompt.id}' has no answer, and {why} needs one")


def _check_lengths(parts: Parts) -> None:
    """The longest prompts, to train on and held out, have to render and to leave room for an answer."""
    for prompts, held_out in ((parts.prompts, False), (parts.held_out, True)):
        longest = sorted(prompts, key=lambda p: -len(str(p.messages or p.text)))[:LONGEST]
        sampler_of(parts, Sampling(), held_out=held_out).check(longest)
        if parts.config.loss.signal == "cross" and not held_out:
            sampler_of(parts, Sampling(), held_out=False, model=parts.teacher).check(longest)


def _teacher(
    config: RunConfig, objects: Objects, student: LanguageModel, device: str
) -> tuple[LanguageModel, int | None]:
    dtype = config.dtype
    name = config.teacher.model or ""
    teacher = objects.teacher or load(name, key="teacher.model", dtype=dtype, device=device)
    teacher.model.requires_grad_(False)
    if config.loss.signal == "cross":
        return teacher, None
    known = check_vocabulary(student.tokenizer, teacher.tokenizer, key="teacher.model")
    ours, theirs = student.head_VD.shape[0], teacher.head_VD.shape[0]
    if min(ours, theirs) < known:
        raise ModelError(
            f"teacher.model: the tokenizer has ids up to {known - 1}, but an output head has only "
            f"{min(ours, theirs)} rows"
        )
    return teacher, None if ours == theirs else min(ours, theirs)


def _author(config: RunConfig, device: str) -> HintAuthor | None:
    author = config.teacher.view.author
    if author is None:
        return None
    if author.kind == "rules":
        return RulesAuthor(author.templates)
    said: dict[str, Any] = {"instruction": author.instruction} if author.instruction else {}
    if author.kind == "http":
        settings = author.model_dump(exclude={"templates", "http", "model", "instruction"})
        return HttpAuthor(author.http or "", author.model or "", **settings, **said)
    critic = load(author.model or "", key="teacher.view.hint.author.model", device=device)
    engine = HFEngine(critic, sampling=Sampling(temperature=0), stop_ids=stop_ids(critic))
    return ModelAuthor(
        engine,
        Chat(critic.tokenizer),
        max_new_tokens=author.max_new_tokens,
        max_length=critic.max_length,
        **said,
    )


def _texts(path: str, parts: Parts) -> list[tuple[int, ...]]:
    """Token ids of held-out texts, cut at what the model can hold."""
    texts = []
    for number, row in enumerate(read_jsonl(path, key="eval.text"), 1):
        if not isinstance(row.get("text"), str):
            raise DataError(f"eval.text: row {number} of '{path}' has no string 'text'")
        ids = parts.chat.prompt_ids(Prompt(id=str(number), text=row["text"]))
        texts.append(ids[: parts.student.max_length])
    return texts
