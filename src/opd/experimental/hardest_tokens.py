"""Difficulty of each token for the student, by which ``hardest_tokens`` selects the trained positions."""

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
    """The student's loss or entropy at each token, by a forward pass without gradients and dropout.

    It covers the whole batch before the update, so that the selection does not depend on micro-batches.

    Attributes:
        student: the model, with its weights at the time of the call.
        max_tokens: tokens per forward pass, padding included.
        objective: the loss that measures difficulty; None for the entropy. A loss of the sampled token is not allowed,
            because a selection that depends on the sample biases the gradient.
        temperature: divides the logits for the entropy.
    """

    student: LanguageModel
    max_tokens: int
    objective: Objective | None = None
    temperature: float = 1.0

    @torch.no_grad()
    def __call__(self, rollouts: Sequence[Rollout], signal: Signal) -> Tensor:
        """Difficulty of each position of the signal, float32 [T], nats."""
        there = set(signal.rollout_T.tolist())
        readings = [reading for reading in student_readings(rollouts) if reading.rollout in there]
        where, states = collect(self.student, readings, max_tokens=self.max_tokens)
        states = states.take(align(rollouts, where, signal))
        if self.objective is None:
            return linear_entropy(states.hidden_TD, states.head_VD, temperature=self.temperature)
        return per_token_losses(self.objective, states, signal)
