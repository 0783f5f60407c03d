"""A teacher reduced to its likeliest tokens, for recordings.

Suffixes: T positions, N positions of a chunk, V vocabulary, K likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from opd.evaluation.distributions import logprob_chunks
from opd.signals import TopKSignal
from opd.teachers.local import LocalTeacher
from opd.types import Rollout, Segment

NO_MASS = -1e4
"""Logarithm of a mass of 0, as a number that JSON has."""


class TopKTeacher:
    """Reduces a full-vocabulary teacher to its k likeliest tokens, and the mass of all others.

    Args:
        teacher: gives whole distributions.
        k: number of tokens; at most those of the vocabulary.
        temperature: divides the logits.
    """

    def __init__(self, teacher: LocalTeacher, k: int, *, temperature: float = 1.0) -> None:
        self.teacher = teacher
        self.k = k
        self.temperature = temperature

    @torch.no_grad()
    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> TopKSignal:
        """One scoring pass over every segment."""
        signal = self.teacher.score(rollouts, segments)
        parts = []
        for rows, (log_q_NV,) in logprob_chunks((signal.hidden_TD / self.temperature, signal.head_VD)):
            best = log_q_NV.topk(self.k, dim=-1)
            own_N = log_q_NV.gather(1, signal.token_T[rows, None])[:, 0]
            rest_N = log_q_NV.scatter(1, best.indices, -torch.inf).logsumexp(-1).clamp_min(NO_MASS)
            parts.append((own_N, best.indices, best.values, rest_N))
        none = signal.hidden_TD.new_zeros(0, dtype=torch.float32)
        parts = parts or [(none, none[:, None].long().repeat(1, self.k), none[:, None].repeat(1, self.k), none)]
        return TopKSignal(
            signal.rollout_T,
            signal.position_T,
            signal.token_T,
            *(torch.cat([part[n] for part in parts]) for n in range(4)),
        )
