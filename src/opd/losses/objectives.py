"""Objectives: a kind of signal with the loss that fits it, as the loop calls them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from opd.errors import OpdError
from opd.losses import (
    Support,
    direct_estimate,
    hidden_distance,
    linear_cross_entropy,
    linear_divergence,
    linear_mixture_divergence,
    linear_token_loss,
    policy_gradient,
    reward_to_go,
    stored_divergence,
)
from opd.losses.cross import Groups, Matched, cross_divergence
from opd.losses.hidden import Projection
from opd.losses.plan import LogitsDtype
from opd.signals import (
    AdvantageSignal,
    CrossSignal,
    FullSignal,
    HiddenSignal,
    SampledSignal,
    TeachersSignal,
    TokenSignal,
    TokenStates,
    TopKSignal,
)
from opd.types import Objective, Signal, States


@torch.no_grad()
def per_token_losses(objective: Objective, student: States, signal: Signal) -> Tensor:
    """The objective's own loss at every position, float32 [T], detached."""
    loss_T = torch.zeros(len(signal), device=signal.token_T.device)
    objective(student, signal.arrived(), torch.ones_like(loss_T), loss_T)
    return loss_T


def _other_signal(objective: object, signal: Signal, needed: str) -> OpdError:
    return OpdError(
        f"{type(objective).__name__} reads a {needed}, and the teacher gave a {type(signal).__name__}. Fix: give "
        "the teacher the objective of its signal"
    )


@dataclass(frozen=True, kw_only=True)
class FullVocabulary:
    """A divergence between whole distributions; the fields are ``linear_divergence``'s arguments."""

    divergence: str = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    vocab_size: int | None = None
    chunk_tokens: int | None = None
    support: Support | None = None
    clip: float | None = None
    logits: LogitsDtype = "float32"

    def __call__(self, student: States, signal: Signal, weight_T: Tensor, per_token_T: Tensor | None = None) -> Tensor:
        """The weighted sum of divergences, float32 []."""
        assert isinstance(student, TokenStates)
        if isinstance(signal, TopKSignal) and self.support:
            return self._stored(student, signal, self.support, weight_T, per_token_T)
        if not isinstance(signal, FullSignal):
            raise _other_signal(self, signal, "FullSignal")
        return linear_divergence(
            student.hidden_TD,
            student.head_VD,
            signal.hidden_TD,
            signal.head_VD.to(signal.hidden_TD.dtype),
            weight=weight_T,
            divergence=self.divergence,
            beta=self.beta,
            temperature=self.temperature,
            vocab_size=self.vocab_size,
            chunk_tokens=self.chunk_tokens,
            per_token=per_token_T,
            support=self.support,
            clip=self.clip,
            logits=self.logits,
        )

    def _stored(
        self, student: TokenStates, signal: TopKSignal, support: Support, weight_T: Tensor, per_token_T: Tensor | None
    ) -> Tensor:
        return stored_divergence(
            student.hidden_TD,
            student.head_VD,
            signal.id_TK,
            signal.logprob_TK,
            signal.rest_logprob_T,
            weight=weight_T,
            support=support,
            divergence=self.divergence,
            beta=self.beta,
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
            per_token=per_token_T,
            logits=self.logits,
        )


@dataclass(frozen=True, kw_only=True)
class SeveralTeachers:
    """A divergence to several teachers' whole distributions.

    Attributes:
        inner: the divergence.
        combine: the mean of the teachers' losses, or one loss to the arithmetic or geometric mean of their
            distributions. With one teacher at a position all three are the same.
    """

    inner: FullVocabulary
    combine: Literal["losses", "arithmetic", "geometric"] = "losses"

    def __call__(self, student: States, signal: Signal, weight_T: Tensor, per_token_T: Tensor | None = None) -> Tensor:
        """The weighted sum of divergences, float32 []."""
        assert isinstance(student, TokenStates)
        if not isinstance(signal, TeachersSignal):
            raise _other_signal(self, signal, "TeachersSignal")
        total = torch.zeros((), device=weight_T.device)
        each_T = torch.zeros_like(weight_T) if per_token_T is None else per_token_T.zero_()
        if self.combine == "losses":
            for k in range(len(signal.parts)):
                rows = (signal.row_TK[:, k] >= 0).nonzero()[:, 0]
                if len(rows):
                    share_T, own_T = signal.share_TK[rows, k], each_T[rows]
                    states, part = student.take(rows), signal.part(k, rows)
                    total = total + self.inner(states, part, weight_T[rows] * share_T, own_T)
                    each_T[rows] += share_T * own_T
            return total
        scores_TK = signal.row_TK >= 0
        for who_K in scores_TK.unique(dim=0):
            rows = (scores_TK == who_K).all(1).nonzero()[:, 0]
            own_T = each_T[rows]
            states = student.take(rows)
            total = total + self._together(states, signal, rows, who_K, weight_T[rows], own_T)
            each_T[rows] = own_T
        return total

    def _together(
        self,
        student: TokenStates,
        signal: TeachersSignal,
        rows: Tensor,
        who_K: Tensor,
        weight_T: Tensor,
        per_token_T: Tensor,
    ) -> Tensor:
        """The loss at the positions that the same teachers score."""
        members = who_K.nonzero()[:, 0]
        parts = [signal.part(int(k), rows) for k in members]
        if len(parts) == 1:
            return self.inner(student, parts[0], weight_T, per_token_T)
        return linear_mixture_divergence(
            student.hidden_TD,
            student.head_VD,
            [(part.hidden_TD, part.head_VD.to(part.hidden_TD.dtype)) for part in parts],
            signal.share_TK[rows][:, members],
            geometric=self.combine == "geometric",
            weight=weight_T,
            per_token=per_token_T,
            **{f.name: getattr(self.inner, f.name) for f in fields(self.inner)},
        )


@dataclass(frozen=True, kw_only=True)
class CrossTokenizer:
    """The hybrid distance to a teacher with another tokenizer; see ``opd.losses.cross``.

    Attributes:
        opening: the common vocabulary where a text begins.
        inside: the common vocabulary everywhere else.
        pieces: how a group of several tokens counts: by the probability of its text, or as GOLD has it ("observed").
    """

    opening: Matched
    inside: Matched
    pieces: Literal["text", "observed"] = "observed"
    beta: float = 0.5
    temperature: float = 1.0
    chunk_tokens: int | None = None

    def __call__(self, student: States, signal: Signal, weight_T: Tensor, per_token_T: Tensor | None = None) -> Tensor:
        """The weighted sum over groups, float32 []; a group weighs what its first token does.

        A group of which some row was dropped does not count: its student's probability would lack a factor. A group's
        loss stands at its first token in ``per_token_T``, and 0 at its others.
        """
        assert isinstance(student, TokenStates)
        if not isinstance(signal, CrossSignal):
            raise _other_signal(self, signal, "CrossSignal")
        first_T = signal.group_T.diff(prepend=signal.group_T.new_tensor([-1])) != 0
        index_T = first_T.cumsum(0) - 1
        whole_G = index_T.bincount() == signal.size_T[first_T]
        weight_G = weight_T[first_T].where(whole_G, 0.0)
        hidden_TD, head_VD = student.hidden_TD, student.head_VD
        several_G = (signal.size_T[first_T] > 1) | (signal.teacher_size_T[first_T] > 1)
        by_text_G = several_G & (self.pieces == "text")
        teacher = Groups(
            signal.teacher_hidden_TD[first_T],
            signal.head_VD.to(signal.teacher_hidden_TD.dtype),
            signal.teacher_token_T[first_T],
        )
        kinds = [(self.inside, ~signal.opens_T[first_T]), (self.opening, signal.opens_T[first_T])]
        each = [torch.zeros_like(weight_G) for _ in kinds]
        losses = [
            cross_divergence(
                Groups(hidden_TD[first_T], head_VD, signal.token_T[first_T]),
                teacher,
                later_hidden_RD=hidden_TD[~first_T],
                later_token_R=signal.token_T[~first_T],
                later_group_R=index_T[~first_T],
                teacher_rest_G=signal.teacher_rest_T[first_T],
                by_text_G=by_text_G,
                matched=matched,
                weight_G=weight_G.where(here_G, 0.0),
                beta=self.beta,
                temperature=self.temperature,
                chunk_groups=self.chunk_tokens,
                per_group=each_G,
            )
            for (matched, here_G), each_G in zip(kinds, each, strict=True)
        ]
        if per_token_T is not None:
            per_token_T.zero_()[first_T] = each[0].nan_to_num(0.0) + each[1].nan_to_num(0.0)
        return losses[0] + losses[1]


@dataclass(frozen=True, kw_only=True)
class PolicyGradient:
    """Policy gradient of advantages: the teacher's log-ratio at the sampled token, or the reward's advantage.

    Attributes:
        discount: of the advantages that come later in the same rollout; 0 leaves each token its own.
        max_advantage: cuts advantages off on both sides; None for never.
        clip, max_ratio: of the importance ratio; see ``opd.losses.policy_gradient``.
    """

    discount: float = 0.0
    max_advantage: float | None = None
    clip: tuple[float, float] | None = None
    max_ratio: float | None = None
    temperature: float = 1.0
    chunk_tokens: int | None = None

    def __call__(self, student: States, signal: Signal, weight_T: Tensor, per_token_T: Tensor | None = None) -> Tensor:
        """−Σ w r A, float32 []: for a teacher's signal its value estimates the reverse KL."""
        assert isinstance(student, TokenStates)
        if not isinstance(signal, SampledSignal | AdvantageSignal):
            raise _other_signal(self, signal, "SampledSignal or AdvantageSignal")
        advantage_T = reward_to_go(signal.advantage_T, signal.rollout_T, self.discount)
        if self.max_advantage is not None:
            advantage_T = advantage_T.clamp(-self.max_advantage, self.max_advantage)
        return linear_token_loss(
            student.hidden_TD,
            student.head_VD,
            signal.token_T,
            policy_gradient(advantage_T, signal.rollout_logprobs_T, clip=self.clip, max_ratio=self.max_ratio),
            weight=weight_T,
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
            per_token=per_token_T,
        )


@dataclass(frozen=True, kw_only=True)
class DirectEstimate:
    """An estimate of the divergence from the sampled token, differentiated as it stands."""

    estimator: str = "k2"
    temperature: float = 1.0
    chunk_tokens: int | None = None

    def __call__(self, student: States, signal: Signal, weight_T: Tensor, per_token_T: Tensor | None = None) -> Tensor:
        """The weighted sum of estimates, float32 []."""
        assert isinstance(student, TokenStates)
        if not isinstance(signal, SampledSignal):
            raise _other_signal(self, signal, "SampledSignal")
        return linear_token_loss(
            student.hidden_TD,
            student.head_VD,
            signal.token_T,
            direct_estimate(signal.teacher_logprobs_T, self.estimator),
            weight=weight_T,
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
            per_token=per_token_T,
        )


@dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """The squared distance between hidden states, the student's projected where the teacher has another width."""

    projection: Projection | None = None
    normalise: bool = False

    def __call__(self, student: States, signal: Signal, weight_T: Tensor, per_token_T: Tensor | None = None) -> Tensor:
        """The weighted sum of mean squared differences, float32 []."""
        assert isinstance(student, TokenStates)
        if not isinstance(signal, HiddenSignal):
            raise _other_signal(self, signal, "HiddenSignal")
        assert student.layers_TKD is not None
        own_TKR = self.projection(student.layers_TKD) if self.projection else student.layers_TKD
        return hidden_distance(
            own_TKR, signal.layers_TKD, weight=weight_T, normalise=self.normalise, per_token=per_token_T
        )


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Supervised training: the token in the rollout is the target."""

    temperature: float = 1.0
    chunk_tokens: int | None = None

    def __call__(self, student: States, signal: Signal, weight_T: Tensor, per_token_T: Tensor | None = None) -> Tensor:
        """The weighted sum of -log p(token), float32 []."""
        assert isinstance(student, TokenStates)
        if not isinstance(signal, TokenSignal):
            raise _other_signal(self, signal, "TokenSignal")
        return linear_cross_entropy(
            student.hidden_TD,
            student.head_VD,
            signal.token_T,
            weight=weight_T,
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
            per_token=per_token_T,
        )
