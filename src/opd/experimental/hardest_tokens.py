"""How hard each token is for the student: what ``experimental.hardest_tokens`` keeps the most difficult of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opd.losses import linear_entropy
from opd.losses.objectives import per_token_losses
from opd.models.forward import align, collect, student_readings
from opd.models.language import LanguageModel
from opd.types import Objective, Rollout, Signal


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """How hard each token is for the student as it is, by a forward pass without gradients.

    Over the whole batch and before the update, so that what is chosen by it does not depend on micro-batches.

    Attributes:
        student: reads its own rollouts, without dropout.
        max_tokens: padded tokens per pass.
        objective: whose loss at each position it is; None for the student's entropy. Not for a loss of the sampled
            token: a choice that depends on what was drawn biases its gradient.
        temperature: divides the logits, for the entropy.
    """

    student: LanguageModel
    max_tokens: int
    objective: Objective | None = None
    temperature: float = 1.0

    @torch.no_grad()
    def __call__(self, rollouts: Sequence[Rollout], signal: Signal) -> Tensor:
        """float32 [T], in nats."""
        where, states = collect(self.student, student_readings(rollouts), max_tokens=self.max_tokens)
        states = states.take(align(rollouts, where, signal))
        if self.objective is None:
            return linear_entropy(states.hidden_TD, states.head_VD, temperature=self.temperature)
        return per_token_losses(self.objective, states, signal)
