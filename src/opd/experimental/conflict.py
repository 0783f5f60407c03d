"""Where teachers contradict each other: on the same tokens, and in the direction they pull the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from opd.losses import linear_divergence
from opd.models.forward import align, batches, read, student_readings
from opd.models.language import LanguageModel
from opd.output.format import CONFLICT
from opd.teachers.experts import Experts
from opd.teachers.local import LocalTeacher
from opd.types import ExpertsSignal, FullSignal, Metrics, Objective, Rollout, Segment, View


@dataclass(frozen=True)
class Conflict:
    """Measures how several teachers stand to each other on the student's own rollouts.

    Attributes:
        student: as it is at the call.
        experts: the teachers, each asked about every domain here.
        view: what they see.
        objective: the loss whose gradients are compared.
        max_tokens: padded tokens per pass.
        vocab_size: rows that all heads have, where their padding differs.
    """

    student: LanguageModel
    experts: Experts
    view: View
    objective: Objective
    max_tokens: int = 16_384
    vocab_size: int | None = None

    def __call__(self, rollouts: Sequence[Rollout]) -> Metrics:
        """By domain and pair of teachers, and by pair of domains.

        Returns:
            ``conflict/jsd/DOMAIN/A~B``: mean JSD of two teachers' distributions over the tokens of that domain, in
            nats, at most 0.693. ``conflict/cosine/A~B``: of the loss's gradients on the rollouts of two domains, each
            read by its own teachers; below 0 a step for one undoes some of the other.

        Source: tests/test_conflict.py.
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
        pool = self.experts.pool
        said: dict[str, FullSignal] = {}
        for name in pool:
            signal = LocalTeacher(pool[name], max_tokens=self.max_tokens).score(rollouts, segments)
            said[name] = replace(signal, head_VD=pool.head(name))
        found: Metrics = {}
        for a, b in combinations(said, 2):
            if len(said[a]):
                found[f"{CONFLICT}jsd/{domain}/{a}~{b}"] = self._jsd(said[a], said[b])
        return found

    def _jsd(self, one: FullSignal, other: FullSignal) -> float:
        weight_T = torch.full((len(one),), 1 / len(one), device=one.hidden_TD.device)
        pairs = [(s.hidden_TD, s.head_VD.to(s.hidden_TD)) for s in (one, other)]
        return linear_divergence(
            *pairs[0], *pairs[1], weight=weight_T, divergence="jsd", beta=0.5, vocab_size=self.vocab_size
        ).item()

    def _gradient(self, rollouts: Sequence[Rollout]) -> Tensor | None:
        """Of the mean loss over these rollouts' tokens, float32 on the CPU; None where no teacher says anything."""
        signal: ExpertsSignal = self.experts.score(rollouts, self.view.segments(rollouts)).to(self.student.device)
        if not len(signal):
            return None
        self.student.model.eval()
        parameters = [p for p in self.student.model.parameters() if p.requires_grad]
        total = [torch.zeros_like(p, device="cpu", dtype=torch.float32) for p in parameters]
        with torch.enable_grad():
            for batch in batches(student_readings(rollouts), self.max_tokens):
                where, states = read(self.student, batch)
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
