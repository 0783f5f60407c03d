"""The signals of language models: what a teacher says about the student's tokens, and the states it is compared with.

Suffixes: T positions, V tokens of the vocabulary, D hidden units, K teachers or layers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from opd.types import Signal, States

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenSignal(Signal):
    """The target is the token itself: supervised training."""


@dataclass(frozen=True, slots=True)
class FullSignal(Signal):
    """A full-vocabulary target without stored logits: softmax(hidden @ head.T). V tokens, D hidden units.

    Attributes:
        hidden_TD: [T, D] last hidden states, detached; row t predicts the token at ``position_T[t]``.
        head_VD: [V, D] the teacher's output head, detached.
    """

    hidden_TD: Tensor
    head_VD: Tensor


@dataclass(frozen=True, slots=True)
class TeachersSignal(Signal):
    """The signals of several teachers, each on the rollouts of its own domains. K teachers.

    Attributes:
        row_TK: int64 [T, K]; the position's row in each teacher's part, −1 if that teacher has not scored it.
        share_TK: float32 [T, K]; weight of each teacher, which add to 1 at every position; 0 without a score.
        parts: each teacher's own signal; ``take`` leaves them whole.
    """

    row_TK: Tensor
    share_TK: Tensor
    parts: tuple[FullSignal, ...]

    def part(self, k: int, rows: Tensor) -> FullSignal:
        """Teacher k's signal at some of the positions it has scored, its head on the same device as its states."""
        part = self.parts[k].take(self.row_TK[rows, k]).arrived()
        return replace(part, head_VD=part.head_VD.to(part.hidden_TD.device))

    def to(self, device: torch.device) -> TeachersSignal:
        """The same signal on another device; heads stay where they are until they are used."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "parts"}
        parts = tuple(replace(p.to(device), head_VD=p.head_VD) for p in self.parts)
        return replace(self, **moved, parts=parts)


@dataclass(frozen=True, slots=True)
class SampledSignal(Signal):
    """The teacher's log-probability of the sampled token.

    Attributes:
        teacher_logprobs_T: float32 [T], nats, detached.
        rollout_logprobs_T: float32 [T], nats, under the distribution it was sampled from.
        baseline_T: float32 [T], nats, subtracted from the advantage; 0 for none.
    """

    teacher_logprobs_T: Tensor
    rollout_logprobs_T: Tensor
    baseline_T: Tensor

    @property
    def log_ratio_T(self) -> Tensor:
        """log q(y) − log μ(y), whose mean is minus the reverse KL."""
        return self.teacher_logprobs_T - self.rollout_logprobs_T

    @property
    def advantage_T(self) -> Tensor:
        """The log-ratio minus its baseline."""
        return self.log_ratio_T - self.baseline_T


@dataclass(frozen=True, slots=True)
class TopKSignal(Signal):
    """The teacher's k likeliest tokens, as they were stored. K of them.

    Attributes:
        teacher_logprobs_T: float32 [T], nats; log-probability of the sampled token, for the report.
        id_TK: int64 [T, K], likeliest first.
        logprob_TK: float32 [T, K], nats, detached.
        rest_logprob_T: float32 [T], nats; logarithm of the mass of all other tokens.
    """

    teacher_logprobs_T: Tensor
    id_TK: Tensor
    logprob_TK: Tensor
    rest_logprob_T: Tensor


@dataclass(frozen=True, slots=True)
class AdvantageSignal(Signal):
    """The advantage of each token, from rewards.

    Attributes:
        advantage_T: float32 [T], detached.
        rollout_logprobs_T: float32 [T], nats, under the distribution the token was sampled from.
    """

    advantage_T: Tensor
    rollout_logprobs_T: Tensor


@dataclass(frozen=True, slots=True)
class HiddenSignal(Signal):
    """The teacher's hidden states, as targets for the student's. K layers, D units.

    Attributes:
        layers_TKD: [T, K, D], detached; row t belongs to the state that predicts the token at ``position_T[t]``.
    """

    layers_TKD: Tensor


@dataclass(frozen=True, slots=True)
class CrossSignal(Signal):
    """Scores of a teacher with another tokenizer, for groups of tokens that cover the same text in both.

    A row is one student token of a group; a group's values are repeated in each of its rows. The teacher has D hidden
    units and V tokens.

    Attributes:
        group_T: int64 [T], number of the group; rows of a group follow each other.
        size_T: int64 [T], rows of the group when it was scored; ``take`` may leave fewer.
        opens_T: bool [T], whether the group begins a text.
        teacher_hidden_TD: [T, D], detached; predicts the teacher's first token of the group.
        teacher_token_T: int64 [T], the teacher's first token of the group.
        teacher_size_T: int64 [T], number of the teacher's tokens in the group.
        teacher_rest_T: float32 [T], nats, detached; the teacher's log-probability of its other tokens in the group.
        head_VD: [V, D] the teacher's output head, detached.
    """

    group_T: Tensor
    size_T: Tensor
    opens_T: Tensor
    teacher_hidden_TD: Tensor
    teacher_token_T: Tensor
    teacher_size_T: Tensor
    teacher_rest_T: Tensor
    head_VD: Tensor


@dataclass(frozen=True, slots=True)
class TokenStates(States):
    """A language model's states at T positions, each of which predicts a token.

    Attributes:
        hidden_TD: [T, D] last hidden states after the final norm; hidden @ head.T are the logits.
        head_VD: [V, D] the output head; for a model that trains the parameter itself, so gradients reach it.
        layers_TKD: [T, K, D] states after K chosen blocks; None if no block is compared.
    """

    hidden_TD: Tensor
    head_VD: Tensor
    layers_TKD: Tensor | None = None
