"""Disagreement of several teachers: of their distributions, and of the gradients on their domains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from opd.losses import linear_divergence
from opd.models.forward import align, read_all, student_readings
from opd.models.language import LanguageModel
from opd.output.format import CONFLICT
from opd.signals import FullSignal, TeachersSignal
from opd.teachers.by_domain import TeachersByDomain
from opd.teachers.local import LocalTeacher
from opd.types import Metrics, Objective, Rollout, Segment, View


@dataclass(frozen=True)
class Conflict:
    """Measures the disagreement of several teachers on the student's own rollouts.

    Attributes:
        student: the model, with its weights at the time of the call.
        teachers: the teachers; each one scores every domain here.
        view: the teachers' input.
        objective: the loss whose gradients are compared.
        max_tokens: tokens per forward pass, padding included.
    """

    student: LanguageModel
    teachers: TeachersByDomain
    view: View
    objective: Objective
    max_tokens: int = 16_384

    def __call__(self, rollouts: Sequence[Rollout]) -> Metrics:
        """Disagreement per domain and pair of teachers, and per pair of domains.

        Returns:
            ``conflict/jsd/DOMAIN/A~B``: mean Jensen-Shannon divergence of two teachers on the tokens of that domain,
            nats, at most 0.693. ``conflict/cosine/A~B``: cosine of the loss's gradients on the rollouts of two domains,
            each scored by its own teachers; below 0, a step for one domain partly undoes the other.

        Source: tests/experimental/test_conflict.py.
        """
        domains = sorted({r.prompt.domain for r in rollouts})
        metrics: Metrics = {}
        for domain in domains:
            own = [r for r in rollouts if r.prompt.domain == domain]
            metrics |= self._disagreement(domain, own, self.view.segments(own))
        gradients = {
            d: g for d in domains if (g := self._gradient([r for r in rollouts if r.prompt.domain == d])) is not None
        }
        for a, b in combinations(gradients, 2):
            cosine = torch.nn.functional.cosine_similarity(gradients[a], gradients[b], dim=0)
            metrics[f"{CONFLICT}cosine/{a}~{b}"] = cosine.item()
        return metrics

    @torch.no_grad()
    def _disagreement(self, domain: str, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> Metrics:
        pool = self.teachers.pool
        signals: dict[str, FullSignal] = {}
        for name in pool:
            signal = LocalTeacher(pool[name], max_tokens=self.max_tokens).score(rollouts, segments).arrived()
            signals[name] = replace(signal, head_VD=pool.head(name))
        found: Metrics = {}
        for a, b in combinations(signals, 2):
            if len(signals[a]):
                found[f"{CONFLICT}jsd/{domain}/{a}~{b}"] = self._jsd(signals[a], signals[b])
        return found

    def _jsd(self, one: FullSignal, other: FullSignal) -> float:
        weight_T = torch.full((len(one),), 1 / len(one), device=one.hidden_TD.device)
        pairs = [(s.hidden_TD, s.head_VD.to(s.hidden_TD)) for s in (one, other)]
        return linear_divergence(*pairs[0], *pairs[1], weight=weight_T, divergence="jsd", beta=0.5).item()

    def _gradient(self, rollouts: Sequence[Rollout]) -> Tensor | None:
        """Gradient of the mean loss over these rollouts' tokens, float32 on the CPU; None if the signal is empty."""
        signal: TeachersSignal = self.teachers.score(rollouts, self.view.segments(rollouts)).to(self.student.device)
        if not len(signal):
            return None
        self.student.model.eval()
        parameters = [p for p in self.student.model.parameters() if p.requires_grad]
        total = [torch.zeros_like(p, device="cpu", dtype=torch.float32) for p in parameters]
        with torch.enable_grad():
            for where, states in read_all(self.student, student_readings(rollouts), max_tokens=self.max_tokens):
                here = signal.take(torch.isin(signal.rollout_T, where.rollout_T))
                if not len(here):
                    continue
                weight_T = torch.full((len(here),), 1 / len(signal), device=self.student.device)
                row_T = align(rollouts, where, here)
                loss = self.objective(states.take(row_T), here, weight_T)
                for sum_, gradient in zip(total, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                    if gradient is not None:
                        sum_ += gradient.float().cpu()
        return torch.cat([g.flatten() for g in total])
