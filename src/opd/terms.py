"""From the parts of a run to the terms of its loss: who teaches, what it sees, how the distance is measured."""

from __future__ import annotations

import dataclasses

import torch

from opd.config import LossConfig, RunConfig, UnsureConfig
from opd.errors import ConfigError
from opd.experimental.hardest_tokens import Difficulty
from opd.losses import Support
from opd.losses.cross import Matched
from opd.losses.objectives import (
    CrossEntropy,
    CrossTokenizer,
    DirectEstimate,
    FullVocabulary,
    HiddenStates,
    PolicyGradient,
    SeveralTeachers,
)
from opd.losses.token_weights import Positions, Unsure
from opd.models.copies import EmaWeights, frozen_copy
from opd.models.forward import sort_key, states_of
from opd.models.language import LanguageModel, stop_ids
from opd.parts import Parts, sampler_of, view_of
from opd.rollouts.sampler import ALL_TURNS
from opd.teachers.alignment import TokenTexts, match
from opd.teachers.cross import CrossTeacher
from opd.teachers.experts import Experts
from opd.teachers.hidden import HiddenTeacher, fit_bridge, matching_layers
from opd.teachers.local import Answers, LocalTeacher, Once
from opd.teachers.sampled import Outcome, SampledTeacher
from opd.teachers.views import Among, PlainView
from opd.types import Objective, Sampling, Teacher, Term, View

EQUAL_REWARDS = (
    "the rewards were equal in every group. Fix: take prompts that some answers get right, or raise "
    "rollout.rollouts_per_prompt"
)
IF_EMPTY = {
    "hint": "teacher.view=hint, and no hint was written. Fix: check teacher.view.author and its hints with opd doctor",
    "feedback": (
        "teacher.view=feedback, and no prompt had a successful attempt to show the teacher. Fix: take easier prompts, "
        "or raise rollout.rollouts_per_prompt"
    ),
    **dict.fromkeys(("plain", "privileged", "context"), "Fix: check teacher.view and loss.token_weights"),
}
"""By view: why a run may end without a target, and what to change."""


def assemble_terms(parts: Parts) -> tuple[list[Term], LanguageModel | None, EmaWeights | None]:
    """The loss: its terms, the model that teaches (None for supervised training), and the running average."""
    config, view = parts.config, view_of(parts)
    everything: View = PlainView()
    if config.loss.gold:  # the reference answers in the batch are for the supervised term alone
        view, everything = Among(view, answers=False), Among(everything, answers=False)
    scoring, reference, average = _weights(parts)
    main = _main(parts, view, scoring, reference)
    weights, weight = _positions(parts, main[2]), config.loss.weight
    if config.loss.signal == "reward":
        terms = [Term("reward", "reward", *main, weight, weights, EQUAL_REWARDS)]
    else:
        terms = [Term("distill", "distill", *main, weight, weights, IF_EMPTY[config.teacher.view.kind])]
    if config.loss.unsure:
        terms.append(_unsure(parts, terms[0], config.loss.unsure))
    if config.loss.gold:
        supervised = CrossEntropy(chunk_tokens=config.loss.chunk_tokens)
        terms.append(
            Term("sft", "sft", Answers(), Among(PlainView(), answers=True), supervised, weight=config.loss.gold)
        )
    if config.may_anchor:
        assert reference is not None
        spared = None if config.teacher.view.hint else everything
        # Reverse: it is bounded where the student gives up what the reference liked, so it can unlearn a habit.
        pull = FullVocabulary(divergence="reverse_kl", chunk_tokens=config.loss.chunk_tokens)
        terms.append(Term("anchor", "anchor", reader(parts, reference), spared, pull, weight=config.loss.anchor))
    if config.loss.outcome:
        objective, mean = _policy_gradient(config.loss, outcome=True), config.loss.positions.mean
        # Which of the signal's tokens count is no question of the outcome's, but how long answers are averaged is.
        even = None if mean == "token" else Positions(mean=mean, longest=config.rollout.max_new_tokens)
        weight, outcome = config.loss.outcome, _outcome(config)
        terms.append(Term("reward", "reward", outcome, everything, objective, weight, even, EQUAL_REWARDS))
    return terms, scoring, average


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


def _main(
    parts: Parts, view: View, scoring: LanguageModel | None, reference: LanguageModel | None
) -> tuple[Teacher, View, Objective]:
    """The term that ``loss.signal`` names."""
    loss = parts.config.loss
    if loss.signal == "tokens":
        return Answers(), view, CrossEntropy(temperature=loss.temperature, chunk_tokens=loss.chunk_tokens)
    if loss.signal == "reward":
        return _outcome(parts.config), view, _policy_gradient(loss, outcome=True)
    if loss.signal == "hidden":
        assert scoring is not None
        teacher, objective = _hidden(parts, view, scoring)
        return teacher, view, objective
    if loss.signal == "cross":
        assert scoring is not None
        return _cross_teacher(parts, scoring), view, _cross_objective(parts, scoring)
    scorer = experts_of(parts) or reader(parts, scoring)
    if loss.signal != "sampled":
        support = Support(**loss.top_k.model_dump()) if loss.top_k else None
        divergence = dataclasses.replace(divergence_of(parts, loss.divergence), support=support, clip=loss.clip)
        return scorer, view, among_teachers(parts, divergence)
    base = reader(parts, reference) if reference is not None and loss.sampled.scale != 1 else None
    own = reader(parts, parts.student) if loss.sampled.baseline else None
    sampled = SampledTeacher(
        scorer if isinstance(scorer, Experts) else Once(scorer),
        reference=base,
        student=own,
        scale=loss.sampled.scale,
        arithmetic=parts.config.teacher.combine == "arithmetic",
        temperature=loss.temperature,
    )
    if loss.sampled.direct is None:
        return sampled, view, _policy_gradient(loss)
    estimate = DirectEstimate(
        estimator=loss.sampled.direct, temperature=loss.temperature, chunk_tokens=loss.chunk_tokens
    )
    return sampled, view, estimate


def _outcome(config: RunConfig) -> Outcome:
    """The reward as the run file shapes it."""
    shape = config.loss.sampled.model_dump(include={"by_deviation", "skip_equal", "skip_truncated", "overlong"})
    return Outcome(**shape, longest=config.rollout.max_new_tokens)


def _unsure(parts: Parts, main: Term, config: UnsureConfig) -> Term:
    """Forward KL where the teacher is unsure; it reads no more than the main term's teacher has read already."""
    assert isinstance(main.teacher, SampledTeacher)
    assert isinstance(main.teacher.teacher, Once)
    positions = _positions(parts, main.objective)
    # The log-ratios that some weights go by are the sampled token's, which this term does not look at; and it has a
    # choice of tokens of its own.
    among = dataclasses.replace(positions, importance=0.0, fade=None, difficulty=None) if positions else None
    where = Unsure(entropy=config.entropy, temperature=parts.config.loss.temperature, among=among)
    support = Support(config.k, whose="teacher", rest="tail")
    objective = dataclasses.replace(divergence_of(parts, "forward_kl"), support=support)
    return Term("teacher_entropy", "distill", main.teacher.teacher, main.view, objective, config.weight, where)


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
    prompts = [p for p in parts.prompts[: config.bridge.prompts] for _ in range(parts.config.rollout.samples)]
    rollouts = sampler_of(parts, Sampling(), held_out=False).rollout(prompts, parts.config.seed, ALL_TURNS)
    segments = view.segments(rollouts)
    where, own = states_of(student, rollouts, PlainView().segments(rollouts), max_tokens=max_tokens, layers=layers)
    there, other = states_of(scoring, rollouts, segments, max_tokens=max_tokens, layers=theirs)
    own = own.take(torch.isin(sort_key(where), sort_key(there)))
    assert own.layers_TKD is not None
    assert other.layers_TKD is not None
    positions, widest = len(own.hidden_TD), min(shapes[0][1], shapes[1][1])
    if config.bridge.rank > widest or positions <= shapes[0][1]:
        raise ConfigError(
            f"loss.hidden.bridge: rank={config.bridge.rank} needs at most {widest} (the narrower model's width), and "
            f"the {positions} positions that the teacher speaks about in {config.bridge.prompts} prompts' rollouts "
            f"have to be more than {shapes[0][1]}; lower the rank or roll out more prompts"
        )
    ours, target = fit_bridge(own.layers_TKD, other.layers_TKD, config.bridge.rank)
    teacher = HiddenTeacher(scoring, theirs, projection=target, max_tokens=max_tokens)
    return teacher, HiddenStates(projection=ours, normalise=config.normalise)


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


def experts_of(parts: Parts) -> Experts | None:
    """Several teachers, where the run file names several."""
    config = parts.config.teacher
    if parts.experts is None:
        return None
    return Experts(parts.experts, config.shares, max_tokens=config.max_tokens, alternate=config.combine == "alternate")


def among_teachers(parts: Parts, divergence: FullVocabulary) -> Objective:
    """A divergence to the teacher, or to several."""
    if parts.experts is None:
        return divergence
    combine = parts.config.teacher.combine
    return SeveralTeachers(inner=divergence, combine="losses" if combine == "alternate" else combine)


def reader(parts: Parts, model: LanguageModel | None) -> LocalTeacher:
    """A model that scores rollouts, in batches as the run file says."""
    assert model is not None
    return LocalTeacher(model, max_tokens=parts.config.teacher.max_tokens)


def _policy_gradient(loss: LossConfig, *, outcome: bool = False) -> PolicyGradient:
    """Of the teacher's log-ratios; or of the outcome, whose advantage is no log-ratio to discount or to cut in nats."""
    shape = loss.sampled.model_dump(
        include={"clip", "max_ratio"} | (set() if outcome else {"discount", "max_advantage"})
    )
    return PolicyGradient(**shape, temperature=loss.temperature, chunk_tokens=loss.chunk_tokens)


def divergence_of(parts: Parts, name: str) -> FullVocabulary:
    """A divergence between whole distributions, with the run file's settings."""
    loss = parts.config.loss
    return FullVocabulary(
        divergence=name,
        beta=loss.beta,
        temperature=loss.temperature,
        vocab_size=parts.vocab_size,
        chunk_tokens=loss.chunk_tokens,
    )


def _positions(parts: Parts, main: Objective) -> Positions | None:
    config, tokenizer = parts.config.loss.positions, parts.student.tokenizer
    skipped = set(tokenizer.all_special_ids) if config.skip_special else set()
    for token in config.skip_tokens:
        if token not in tokenizer.get_vocab():
            raise ConfigError(f"loss.positions.skip_tokens: the student's tokenizer has no token '{token}'")
        skipped.add(tokenizer.get_vocab()[token])
    if config == type(config)():
        return None
    settings = config.model_dump(exclude={"skip_special", "skip_tokens", "hardest"})
    if config.hardest:
        objective = main if config.hardest.by == "divergence" else None
        size, temperature = parts.config.teacher.max_tokens, parts.config.loss.temperature
        settings["difficulty"] = Difficulty(
            student=parts.student, max_tokens=size, objective=objective, temperature=temperature
        )
        settings["hardest"] = config.hardest.share
    return Positions(skip_ids=frozenset(skipped), longest=parts.config.rollout.max_new_tokens, **settings)


def _weights(parts: Parts) -> tuple[LanguageModel | None, LanguageModel | None, EmaWeights | None]:
    """The model that teaches, the anchor's reference and the running average; copies are shared where they can be."""
    config = parts.config
    compares = config.may_anchor or config.loss.sampled.scale != 1
    frozen = config.teacher.weights == "frozen" and config.loss.reads_teacher
    initial = frozen_copy(parts.student) if compares or frozen else None
    reference = initial if compares else None
    live = config.teacher.weights == "live"
    if config.teacher.weights == "ema" or (live and config.guards.recover):
        # A live teacher that may have to stop following the student is a copy that follows it at once.
        copy, decay = frozen_copy(parts.student), 0.0 if live else config.teacher.ema_decay
        return copy, reference, EmaWeights(copy.model, parts.student.model, decay)
    scoring = {"frozen": initial, "live": parts.student, "model": parts.teacher}[config.teacher.weights]
    return scoring, reference, None
