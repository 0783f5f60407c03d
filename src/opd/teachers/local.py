"""Teachers that are models on this machine: another model, or the student's own weights frozen, averaged or live."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from opd.models import LanguageModel, freeze
from opd.reading import batches, read, readings_of, sort_key
from opd.types import FullSignal, Rollout, Segment, TokenSignal


class LocalTeacher:
    """Scores the student's tokens with a model's last hidden states.

    Which weights it has is decided by who builds it: another model, a frozen or averaged copy of the
    student, or the student itself (live).

    Args:
        language_model: what scores.
        max_tokens: padded tokens per forward pass.
    """

    def __init__(self, language_model: LanguageModel, *, max_tokens: int = 16_384) -> None:
        self.language_model = language_model
        self.max_tokens = max_tokens

    @torch.no_grad()
    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> FullSignal:
        """Read every segment once and keep one hidden state per student-chosen token.

        Segments of one rollout that stand in its own history share one forward pass.

        Returns:
            A detached signal, ordered by rollout and position.
        """
        model, head_VD = self.language_model.model, self.language_model.head_VD.detach()
        was_training = model.training
        model.eval()
        parts = [
            FullSignal(where.rollout_T, where.position_T, where.token_T, hidden_TD, head_VD)
            for where, hidden_TD in (
                read(self.language_model, batch) for batch in batches(readings_of(rollouts, segments), self.max_tokens)
            )
        ]
        model.train(was_training)
        if not parts:
            none = torch.zeros(0, dtype=torch.int64, device=head_VD.device)
            return FullSignal(none, none, none, head_VD.new_zeros(0, head_VD.shape[1]), head_VD)
        whole = FullSignal(
            torch.cat([p.rollout_T for p in parts]),
            torch.cat([p.position_T for p in parts]),
            torch.cat([p.token_T for p in parts]),
            torch.cat([p.hidden_TD for p in parts]),
            head_VD,
        )
        return whole.take(sort_key(whole).argsort())


class Answers:
    """The teacher of supervised training: the target is the token that stands in the rollout."""

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> TokenSignal:
        """A one-hot target for every student-chosen position of every segment."""
        table = [
            (s.rollout, p, rollouts[s.rollout].completion_ids[p])
            for s in segments
            for p in range(*s.span)
            if rollouts[s.rollout].completion_mask[p]
        ]
        rollout_T, position_T, token_T = torch.tensor(table, dtype=torch.int64).reshape(-1, 3).unbind(1)
        return TokenSignal(rollout_T, position_T, token_T)


def frozen_copy(language_model: LanguageModel) -> LanguageModel:
    """The student as it is now, never to change; shared by the frozen teacher and the anchor's reference."""
    model = freeze(copy.deepcopy(language_model.model))
    return LanguageModel(model, language_model.tokenizer, language_model.source, language_model.autocast)


class EmaWeights:
    """An exponential moving average of a model's weights: average <- decay * average + (1 - decay) * live.

    Args:
        average: a frozen copy, updated in place.
        live: the model that trains.
        decay: share of the average that stays at each optimizer step.
    """

    def __init__(self, average: nn.Module, live: nn.Module, decay: float) -> None:
        self.average = average
        self.live = live
        self.decay = decay

    @torch.no_grad()
    def update(self) -> None:
        """Move the average one optimizer step on."""
        for mean, current in zip(self.average.parameters(), self.live.parameters(), strict=True):
            mean.lerp_(current.to(mean.dtype), 1 - self.decay)
