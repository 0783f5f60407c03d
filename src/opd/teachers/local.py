"""Teachers that are models on this machine: another model, or the student's own weights frozen, averaged or live."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from opd.models.forward import Reading, batches, read, readings_of, sort_key
from opd.models.language import LanguageModel, freeze
from opd.types import FullSignal, Rollout, Segment, Signal, TokenSignal, TokenStates


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

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> FullSignal:
        """Read every segment once and keep one hidden state per student-chosen token.

        Segments of one rollout that stand in its own history share one forward pass.

        Returns:
            A detached signal, ordered by rollout and position.
        """
        where, states = states_of(self.language_model, rollouts, segments, max_tokens=self.max_tokens)
        head_VD = self.language_model.head_VD.detach()
        return FullSignal(where.rollout_T, where.position_T, where.token_T, states.hidden_TD, head_VD)


class Once:
    """Reads once what several terms ask of one teacher in the same step.

    Args:
        teacher: reads.
    """

    def __init__(self, teacher: LocalTeacher) -> None:
        self.teacher = teacher
        self.last: tuple[Sequence[Rollout], Sequence[Segment], FullSignal] | None = None

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> FullSignal:
        """The teacher's signal; that of the last call where it is about the same rollouts and segments."""
        if self.last is None or self.last[0] is not rollouts or self.last[1] != segments:
            self.last = rollouts, segments, self.teacher.score(rollouts, segments)
        return self.last[2]


def states_of(
    language_model: LanguageModel,
    rollouts: Sequence[Rollout],
    segments: Sequence[Segment],
    *,
    max_tokens: int,
    layers: Sequence[int] = (),
) -> tuple[Signal, TokenStates]:
    """A model's states for every student-chosen token of some segments, ordered by rollout and position, detached."""
    return collect(language_model, readings_of(rollouts, segments), max_tokens=max_tokens, layers=layers)


@torch.no_grad()
def collect(
    language_model: LanguageModel, readings: Sequence[Reading], *, max_tokens: int, layers: Sequence[int] = ()
) -> tuple[Signal, TokenStates]:
    """Read batch by batch, without dropout: which tokens were scored and their states, in order, detached."""
    model = language_model.model
    was_training = model.training
    model.eval()
    parts = [read(language_model, batch, layers) for batch in batches(readings, max_tokens)]
    model.train(was_training)
    if not parts:
        none = torch.zeros(0, dtype=torch.int64, device=language_model.device)
        head_VD = language_model.head_VD.detach()
        hidden_TD = head_VD.new_zeros(0, head_VD.shape[1])
        return Signal(none, none, none), TokenStates(hidden_TD, head_VD, hidden_TD[:, None].repeat(1, len(layers), 1))
    where = Signal(*(torch.cat([getattr(w, f.name) for w, _ in parts]) for f in dataclasses.fields(Signal)))
    layers_TKD = torch.cat([s.layers_TKD for _, s in parts if s.layers_TKD is not None]) if layers else None
    states = TokenStates(torch.cat([s.hidden_TD for _, s in parts]), parts[0][1].head_VD, layers_TKD)
    order_T = sort_key(where).argsort()
    return where.take(order_T), states.take(order_T)


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
            if mean is not current:  # weights that do not train are shared
                mean.lerp_(current.to(mean.dtype), 1 - self.decay)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the live weights as they are."""
        for mean, current in zip(self.average.parameters(), self.live.parameters(), strict=True):
            mean.copy_(current)
