"""Evaluation of a student on held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from opd.evaluation.diagnostics import diagnose
from opd.evaluation.metrics import summarise
from opd.losses import linear_cross_entropy
from opd.models.forward import Reading, align, read_all, student_readings
from opd.models.language import LanguageModel
from opd.teachers.local import LocalTeacher
from opd.types import Metrics, Objective, Prompt, Rollout, RolloutSource, Signal, Teacher, View

SEED = 20_260_101
"""Seed of sampled evaluation answers, the same at every evaluation, so that only the weights change the metrics."""

MAX_TOKENS = 16_384
"""Tokens per forward pass, padding included."""


@dataclass(frozen=True)
class DomainTeacher:
    """One of several teachers on one domain.

    Attributes:
        domain: domain of the prompts that it is measured on.
        label: suffix of its metrics: the domain, and its name too if several teachers share the domain.
        scorer: loads the teacher to score rollouts.
        greedy: loads the teacher to generate greedy answers; returns None for one that does not write.
        leads: whether it has the largest share of the domain.
    """

    domain: str
    label: str
    scorer: Callable[[], LocalTeacher]
    greedy: Callable[[], RolloutSource | None]
    leads: bool


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The measurements of one evaluation; calling it returns the metrics.

    Attributes:
        student: the model, with its weights at the time of the call.
        prompts: held-out prompts.
        greedy: generates the measured rollouts of the student, at temperature 0 in every run.
        sampled: generates rollouts of the student at temperature 1, for divergence and diagnostics.
        drawn: generates the answers of avg@n.
        samples: n of avg@n; 0 disables it.
        divergence: teacher, view and objective of ``reverse_kl`` on the student's sampled rollouts; None disables it.
        repeats: rollouts per prompt for divergence and diagnostics; a feedback view needs several attempts.
        texts: token ids of held-out texts for ``text_loss``.
        compared: teacher (None for several), view and number of prompts of the diagnostics; None disables them.
        teacher: generates greedy rollouts of the teacher, for its accuracy; None disables it.
        teachers: several teachers, each on its domains, instead of ``teacher``.
        conflict: measures the disagreement of several teachers; None disables it.
    """

    student: LanguageModel
    prompts: Sequence[Prompt]
    greedy: RolloutSource
    sampled: RolloutSource
    drawn: RolloutSource
    samples: int = 0
    divergence: tuple[Teacher, View, Objective] | None = None
    texts: Sequence[tuple[int, ...]] = ()
    repeats: int = 1
    compared: tuple[LocalTeacher | None, View, int] | None = None
    teacher: RolloutSource | None = None
    teachers: Sequence[DomainTeacher] = ()
    conflict: Callable[[Sequence[Rollout]], Metrics] | None = None

    def __call__(self) -> Metrics:
        """Metrics of greedy rollouts (see ``summarise``), ``avg@n``, ``reverse_kl``, ``text_loss`` and ``diagnose``."""
        metrics: Metrics = {}
        if self.prompts:
            metrics |= summarise(self.greedy.rollout(self.prompts, SEED))
        if self.samples:
            repeated = [p for p in self.prompts for _ in range(self.samples)]
            measured = summarise(self.drawn.rollout(repeated, SEED))
            short = {"accuracy": "avg", "reward": "reward"}
            metrics |= {f"{short[name]}@{self.samples}": measured[name] for name in short if name in measured}
        if self.divergence and self.prompts:
            teacher, view, objective = self.divergence
            rollouts = self.sampled.rollout([p for p in self.prompts for _ in range(self.repeats)], SEED)
            mean = mean_divergence(self.student, rollouts, teacher, view, objective)
            metrics |= {} if mean is None else {"reverse_kl": mean}
        if self.texts:
            metrics["text_loss"] = text_loss(self.student, self.texts)
        if "accuracy" in metrics or "reward" in metrics:
            metrics |= self.of_teacher
        if self.compared:
            scorer, view, number = self.compared
            prompts = self.prompts[: max(number // self.repeats, 1)]
            rollouts = self.sampled.rollout([p for p in prompts for _ in range(self.repeats)], SEED)
            if scorer:
                metrics |= diagnose(self.student, rollouts, scorer, view)
            for one in self.teachers:
                own = [r for r in rollouts if r.prompt.domain == one.domain]
                found = diagnose(self.student, own, one.scorer(), view)
                metrics |= {f"{name}/{one.label}": value for name, value in found.items() if name.count("/") == 1}
            if self.conflict:
                metrics |= self.conflict(rollouts)
        return metrics

    @cached_property
    def of_teacher(self) -> Metrics:
        """Greedy accuracy and mean reward of the teacher, or of several on their domains; measured once."""
        if self.teacher:
            measured = summarise(self.teacher.rollout(self.prompts, SEED))
            return {
                f"teacher_{name}": v for name, v in measured.items() if name.split("/")[0] in ("accuracy", "reward")
            }
        metrics: Metrics = {}
        totals: dict[str, tuple[float, int]] = {}
        for one in self.teachers:
            own = [p for p in self.prompts if p.domain == one.domain]
            writer = one.greedy()
            measured = summarise(writer.rollout(own, SEED)) if writer else {}
            for name in measured.keys() & {"accuracy", "reward"}:
                metrics[f"teacher_{name}/{one.label}"] = measured[name]
                if one.leads:
                    total, asked = totals.get(name, (0.0, 0))
                    totals[name] = total + measured[name] * len(own), asked + len(own)
        whole = {name: total / asked for name, (total, asked) in totals.items() if asked == len(self.prompts)}
        return metrics | {f"teacher_{name}": value for name, value in whole.items()}


@torch.no_grad()
def mean_divergence(
    student: LanguageModel, rollouts: Sequence[Rollout], teacher: Teacher, view: View, objective: Objective
) -> float | None:
    """Mean of an objective over the positions of a teacher's signal, nats per token; None if the signal is empty."""
    signal = teacher.score(rollouts, view.segments(rollouts)).to(student.device).arrived()
    return mean_loss(student, rollouts, signal, objective) if len(signal) else None


@torch.no_grad()
def mean_loss(
    student: LanguageModel,
    rollouts: Sequence[Rollout],
    signal: Signal,
    objective: Objective,
    *,
    max_tokens: int = MAX_TOKENS,
    layers: Sequence[int] = (),
) -> float:
    """Mean of an objective over the positions of a signal, nats per token.

    Args:
        signal: not empty.
        max_tokens: tokens per forward pass, padding included.
        layers: blocks of the student whose hidden states the objective needs.
    """
    student.model.eval()
    total = 0.0
    for scored, states in read_all(student, student_readings(rollouts), max_tokens=max_tokens, layers=layers):
        here = signal.take(torch.isin(signal.rollout_T, scored.rollout_T))
        if len(here):
            row_T = align(rollouts, scored, here)
            weight_T = torch.ones(len(here), device=student.device)
            total += float(objective(states.take(row_T), here, weight_T))
    return total / len(signal)


@torch.no_grad()
def text_loss(student: LanguageModel, texts: Sequence[tuple[int, ...]]) -> float:
    """Mean cross-entropy on texts, nats per token, without the first token of each text."""
    student.model.eval()
    readings = [Reading(i, ids, 0, list(range(1, len(ids)))) for i, ids in enumerate(texts) if len(ids) > 1]
    total = 0.0
    for scored, states in read_all(student, readings, max_tokens=MAX_TOKENS):
        weight_T = torch.ones(len(scored), device=student.device)
        total += float(linear_cross_entropy(states.hidden_TD, states.head_VD, scored.token_T, weight=weight_T))
    return total / sum(len(r.wanted) for r in readings)
