"""From a run file to the parts of a loop. Everything that can be refused is refused here, before any step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opd.chat import Chat
from opd.config import EvalConfig, LossConfig, PromptsConfig, RunConfig
from opd.data import from_rows, load_prompts, read_jsonl
from opd.errors import ConfigError, DataError, ModelError
from opd.evaluation import Evaluation
from opd.log import RunLog
from opd.loop import Loop, Objective, Term
from opd.losses import Support, check_divergence
from opd.losses.cross import Matched
from opd.models import LanguageModel, check_vocabulary, load, stop_ids
from opd.objectives import CrossEntropy, CrossTokenizer, DirectEstimate, FullVocabulary, PolicyGradient
from opd.positions import Positions
from opd.rollout.answers import ReferenceAnswers
from opd.rollout.curriculum import Uniform
from opd.rollout.hf import HFEngine, Sampling
from opd.rollout.mixture import Mixture
from opd.rollout.sampler import Sampler
from opd.teachers.alignment import TokenTexts, match
from opd.teachers.cross import CrossTeacher
from opd.teachers.hint_http import HttpAuthor
from opd.teachers.hints import ModelAuthor, RulesAuthor
from opd.teachers.local import Answers, EmaWeights, LocalTeacher, frozen_copy
from opd.teachers.sampled import Outcome, SampledTeacher
from opd.teachers.views import HintView, PlainView, PrivilegedView
from opd.training.checkpoint import Checkpoints
from opd.training.guards import Guards
from opd.training.optim import Optimizer
from opd.types import HintAuthor, Prompt, Task, Teacher, View

SMALL_MODEL = 20_000_000
"""Parameters below which more than one CPU thread costs more in waiting than it saves."""

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
    student = objects.student or load(config.student, key="student", device=device)
    student = _with_precision(student, config)
    size = sum(p.numel() for p in student.model.parameters())
    if config.threads or size < SMALL_MODEL:
        torch.set_num_threads(config.threads or 1)
    chat = Chat(student.tokenizer)
    prompts, task = _prompts(config.prompts, objects, chat)
    _check_answers(config, prompts, objects.task or task)
    curriculum = Uniform(prompts, batch=config.rollout.batch, samples=config.rollout.samples, seed=config.seed)
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
    return parts


def assemble(parts: Parts, log: RunLog) -> Loop:
    """Put the parts into a loop that is ready to run from step 0."""
    config, student = parts.config, parts.student
    torch.manual_seed(config.seed)
    student.model.requires_grad_(True)
    if config.optimizer.gradient_checkpointing:
        student.model.gradient_checkpointing_enable()
    terms, scoring, average = assemble_terms(parts)
    return Loop(
        student=student,
        sampler=_training_sampler(parts),
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
        average=average,
        evaluate=evaluation(parts, scoring),
        evaluate_every=config.eval.every,
    )


def assemble_terms(parts: Parts) -> tuple[list[Term], LanguageModel | None, EmaWeights | None]:
    """The loss: its terms, the model that teaches (None for supervised training), and the running average."""
    config, view = parts.config, view_of(parts)
    scoring, reference, average = _weights(parts)
    name = "outcome" if config.loss.signal == "reward" else "distill"
    terms = [Term(name, *_main(parts, view, scoring, reference), config.loss.weight, _positions(parts))]
    if config.loss.anchor:
        assert reference is not None
        spared = None if isinstance(view, HintView) else PlainView()
        # Reverse: it is bounded where the student gives up what the reference liked, so it can unlearn a habit.
        pull = FullVocabulary(divergence="reverse_kl", chunk_tokens=config.loss.chunk_tokens)
        terms.append(Term("anchor", _reader(parts, reference), spared, pull, weight=config.loss.anchor))
    if config.loss.outcome:
        outcome = Outcome(by_deviation=config.loss.sampled.by_deviation)
        terms.append(Term("outcome", outcome, PlainView(), _policy_gradient(config.loss), weight=config.loss.outcome))
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
    if loss.signal == "cross":
        return _cross_teacher(parts, scoring), view, _cross_objective(parts, scoring)
    teacher = _reader(parts, scoring)
    if loss.signal != "sampled":
        support = Support(**loss.top_k.model_dump()) if loss.top_k else None
        return teacher, view, _divergence(parts, loss.divergence, support)
    base = _reader(parts, reference) if reference is not None and loss.sampled.scale != 1 else None
    sampled = SampledTeacher(teacher, reference=base, scale=loss.sampled.scale, temperature=loss.temperature)
    if loss.sampled.estimator == "policy_gradient":
        return sampled, view, _policy_gradient(loss)
    estimate = DirectEstimate(
        estimator=loss.sampled.estimator, temperature=loss.temperature, chunk_tokens=loss.chunk_tokens
    )
    return sampled, view, estimate


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
    )


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
        template = {"template": config.privileged.template} if config.privileged.template else {}
        return PrivilegedView(parts.chat, **template)
    return PlainView()


def _training_sampler(parts: Parts) -> Sampler | ReferenceAnswers | Mixture:
    rollout = parts.config.rollout
    if not rollout.off_policy:
        return _writer(parts, rollout.policy)
    return Mixture(_writer(parts, "student"), _writer(parts, rollout.other), share=rollout.off_policy)


def _writer(parts: Parts, who: str) -> Sampler | ReferenceAnswers:
    rollout = parts.config.rollout
    if who == "answers":
        return ReferenceAnswers(parts.chat, stop=min(stop_ids(parts.student)), max_length=parts.student.max_length)
    sampling = Sampling(temperature=rollout.temperature, top_p=rollout.top_p, top_k=rollout.top_k)
    return sampler_of(parts, sampling, held_out=False, model=parts.teacher if who == "teacher" else None)


def _positions(parts: Parts) -> Positions | None:
    config, tokenizer = parts.config.loss.positions, parts.student.tokenizer
    skipped = set(tokenizer.all_special_ids) if config.skip_special else set()
    for token in config.skip_tokens:
        if token not in tokenizer.get_vocab():
            raise ConfigError(f"loss.positions.skip_tokens: the student's tokenizer has no token '{token}'")
        skipped.add(tokenizer.get_vocab()[token])
    if config == type(config)():
        return None
    return Positions(skip_ids=frozenset(skipped), first=config.first, mean=config.mean, importance=config.importance)


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


def _divergence(parts: Parts, name: str, support: Support | None = None) -> FullVocabulary:
    loss = parts.config.loss
    return FullVocabulary(
        divergence=name,
        beta=loss.beta,
        temperature=loss.temperature,
        vocab_size=parts.vocab_size,
        chunk_tokens=loss.chunk_tokens,
        support=support,
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
    answers = "answers" in config.rollout.writers
    for prompt in prompts if answers or config.teacher.view.privileged else ():
        if prompt.answer is None:
            why = "rollout.policy=answers" if answers else "teacher.view=privileged"
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
    if config.teacher.view.hint is None:
        return None
    author = config.teacher.view.hint.author
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
