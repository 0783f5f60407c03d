"""Measuring a student on held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from opd.evaluation.diagnostics import diagnose
from opd.evaluation.metrics import Metrics, summarise
from opd.losses import linear_cross_entropy
from opd.models.forward import Reading, align, batches, read, student_readings
from opd.models.language import LanguageModel
from opd.rollouts.sampler import Sampler
from opd.teachers.local import LocalTeacher
from opd.types import Prompt, Rollout, RolloutSource, Teacher, View

if TYPE_CHECKING:
    from opd.loop import Objective

SEED = 20_260_101
"""Of sampled evaluation answers: the same draws at every evaluation, so that figures differ by the weights alone."""

MAX_TOKENS = 16_384
"""Padded tokens per forward pass."""


@dataclass(frozen=True)
class Peer:
    """One of several teachers on one domain.

    Attributes:
        domain: whose prompts it is measured on.
        label: behind its figures: the domain, with the teacher's name where several read it.
        reader: makes what reads rollouts with it.
        greedy: makes what rolls it out with the most likely token.
        leads: whether nobody has more to say on that domain.
    """

    domain: str
    label: str
    reader: Callable[[], LocalTeacher]
    greedy: Callable[[], RolloutSource]
    leads: bool


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What to measure; calling it measures.

    Attributes:
        student: the model as it is at the call.
        prompts: held-out prompts.
        greedy: rolls out with the most likely token.
        sampled: rolls out at temperature 1, for avg@n and for the divergence.
        samples: n of avg@n; 0 leaves it out.
        divergence: teacher, view and objective for the mean divergence on the student's own sampled rollouts; None
            leaves it out.
        repeats: rollouts per prompt where a teacher compares, so that a view of feedback finds other attempts.
        texts: token ids of held-out texts, for the loss on them.
        compared: the teacher (None for several), its view and the number of prompts of the diagnostics; None leaves
            them out.
        teacher: rolls out greedily, for the teacher's own accuracy; None leaves it out.
        peers: the same for several teachers, each on its domains.
        conflict: measures how these stand to each other.
    """

    student: LanguageModel
    prompts: Sequence[Prompt]
    greedy: Sampler
    sampled: Sampler
    samples: int = 0
    divergence: tuple[Teacher, View, Objective] | None = None
    texts: Sequence[tuple[int, ...]] = ()
    repeats: int = 1
    compared: tuple[LocalTeacher | None, View, int] | None = None
    teacher: RolloutSource | None = None
    peers: Sequence[Peer] = ()
    conflict: Callable[[Sequence[Rollout]], Metrics] | None = None

    def __call__(self) -> Metrics:
        """Greedy figures (see ``summarise``), ``avg@n``, ``reverse_kl``, ``text_loss``, and those of ``diagnose``."""
        metrics: Metrics = {}
        if self.prompts:
            metrics |= summarise(self.greedy.rollout(self.prompts, SEED))
        if self.samples:
            repeated = [p for p in self.prompts for _ in range(self.samples)]
            accuracy = summarise(self.sampled.rollout(repeated, SEED)).get("accuracy")
            if accuracy is not None:
                metrics[f"avg@{self.samples}"] = accuracy
        if self.divergence and self.prompts:
            teacher, view, objective = self.divergence
            rollouts = self.sampled.rollout([p for p in self.prompts for _ in range(self.repeats)], SEED)
            mean = mean_divergence(self.student, rollouts, teacher, view, objective)
            metrics |= {} if mean is None else {"reverse_kl": mean}
        if self.texts:
            metrics["text_loss"] = text_loss(self.student, self.texts)
        if "accuracy" in metrics:
            metrics |= self.teacher_accuracy
        if self.compared:
            reader, view, number = self.compared
            prompts = self.prompts[: max(number // self.repeats, 1)]
            rollouts = self.sampled.rollout([p for p in prompts for _ in range(self.repeats)], SEED)
            if reader:
                metrics |= diagnose(self.student, rollouts, reader, view)
            for peer in self.peers:
                own = [r for r in rollouts if r.prompt.domain == peer.domain]
                found = diagnose(self.student, own, peer.reader(), view)
                metrics |= {f"{name}/{peer.label}": value for name, value in found.items() if name.count("/") == 1}
            if self.conflict:
                metrics |= self.conflict(rollouts)
        return metrics

    @cached_property
    def teacher_accuracy(self) -> Metrics:
        """The teacher's greedy accuracy on the same prompts, measured once; of several, each on its domains."""
        if self.teacher:
            measured = summarise(self.teacher.rollout(self.prompts, SEED))
            return {f"teacher_{name}": value for name, value in measured.items() if name.startswith("accuracy")}
        accuracy: Metrics = {}
        right, asked = 0.0, 0
        for peer in self.peers:
            own = [p for p in self.prompts if p.domain == peer.domain]
            found = summarise(peer.greedy().rollout(own, SEED)).get("accuracy")
            if found is not None:
                accuracy[f"teacher_accuracy/{peer.label}"] = found
                right, asked = right + peer.leads * found * len(own), asked + peer.leads * len(own)
        return accuracy | ({"teacher_accuracy": right / asked} if asked == len(self.prompts) else {})


@torch.no_grad()
def mean_divergence(
    student: LanguageModel, rollouts: Sequence[Rollout], teacher: Teacher, view: View, objective: Objective
) -> float | None:
    """Mean of an objective over the student's tokens, in nats per token; None where the teacher says nothing."""
    signal = teacher.score(rollouts, view.segments(rollouts)).to(student.device)
    student.model.eval()
    total = 0.0
    for batch in batches(student_readings(rollouts), MAX_TOKENS):
        where, states = read(student, batch)
        here = signal.take(torch.isin(signal.rollout_T, where.rollout_T))
        if len(here):
            row_T = align(rollouts, where, here)
            weight_T = torch.ones(len(here), device=student.device)
            total += float(objective(states.take(row_T), here, weight_T))
    return total / len(signal) if len(signal) else None


@torch.no_grad()
def text_loss(student: LanguageModel, texts: Sequence[tuple[int, ...]]) -> float:
    """Cross entropy on texts, nats per token; the first token of each is given."""
    student.model.eval()
    readings = [Reading(i, ids, 0, list(range(1, len(ids)))) for i, ids in enumerate(texts) if len(ids) > 1]
    total = 0.0
    for batch in batches(readings, MAX_TOKENS):
        where, states = read(student, batch)
        weight_T = torch.ones(len(where), device=student.device)
        total += float(linear_cross_entropy(states.hidden_TD, states.head_VD, where.token_T, weight=weight_T))
    return total / sum(len(r.wanted) for r in readings)
