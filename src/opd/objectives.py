"""Objectives: a kind of signal with the loss that fits it, as the loop calls them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from opd.losses import (
    Support,
    direct_estimate,
    hidden_distance,
    linear_cross_entropy,
    linear_divergence,
    linear_token_loss,
    policy_gradient,
    reward_to_go,
)
from opd.losses.sampled import Estimator
from opd.teachers.hidden import Projection
from opd.types import AdvantageSignal, FullSignal, HiddenSignal, SampledSignal, Signal, States, TokenSignal


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

    def __call__(self, student: States, student_head_VD: Tensor, signal: Signal, weight_T: Tensor) -> Tensor:
        """The weighted sum of divergences, float32 []."""
        assert isinstance(signal, FullSignal)
        return linear_divergence(
            student.hidden_TD,
            student_head_VD.to(student.hidden_TD.dtype),
            signal.hidden_TD,
            signal.head_VD.to(signal.hidden_TD.dtype),
            weight=weight_T,
            divergence=self.divergence,
            beta=self.beta,
            temperature=self.temperature,
            vocab_size=self.vocab_size,
            chunk_tokens=self.chunk_tokens,
            support=self.support,
            clip=self.clip,
        )


@dataclass(frozen=True, kw_only=True)
class PolicyGradient:
    """Do more of what has an advantage: the teacher's log-ratio at the sampled token, or the outcome's.

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

    def __call__(self, student: States, student_head_VD: Tensor, signal: Signal, weight_T: Tensor) -> Tensor:
        """−Σ w r A, float32 []: for a teacher's signal its value estimates the reverse KL."""
        assert isinstance(signal, SampledSignal | AdvantageSignal)
        advantage_T = reward_to_go(signal.advantage_T, signal.rollout_T, self.discount)
        if self.max_advantage is not None:
            advantage_T = advantage_T.clamp(-self.max_advantage, self.max_advantage)
        return linear_token_loss(
            student.hidden_TD,
            student_head_VD.to(student.hidden_TD.dtype),
            signal.token_T,
            policy_gradient(advantage_T, signal.rollout_logprobs_T, clip=self.clip, max_ratio=self.max_ratio),
            weight=weight_T,
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class DirectEstimate:
    """An estimate of the divergence from the sampled token, differentiated as it stands."""

    estimator: Estimator = "k2"
    temperature: float = 1.0
    chunk_tokens: int | None = None

    def __call__(self, student: States, student_head_VD: Tensor, signal: Signal, weight_T: Tensor) -> Tensor:
        """The weighted sum of estimates, float32 []."""
        assert isinstance(signal, SampledSignal)
        return linear_token_loss(
            student.hidden_TD,
            student_head_VD.to(student.hidden_TD.dtype),
            signal.token_T,
            direct_estimate(signal.teacher_logprobs_T, self.estimator),
            weight=weight_T,
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """The squared distance between hidden states, the student's projected where the teacher has another width."""

    projection: Projection | None = None
    normalise: bool = False

    def __call__(self, student: States, student_head_VD: Tensor, signal: Signal, weight_T: Tensor) -> Tensor:
        """The weighted sum of mean squared differences, float32 []."""
        assert isinstance(signal, HiddenSignal)
        assert student.layers_TKD is not None
        own_TKR = self.projection(student.layers_TKD) if self.projection else student.layers_TKD
        return hidden_distance(own_TKR, signal.layers_TKD, weight=weight_T, normalise=self.normalise)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Supervised training: the token in the rollout is the target."""

    temperature: float = 1.0
    chunk_tokens: int | None = None

    def __call__(self, student: States, student_head_VD: Tensor, signal: Signal, weight_T: Tensor) -> Tensor:
        """The weighted sum of -log p(token), float32 []."""
        assert isinstance(signal, TokenSignal)
        return linear_cross_entropy(
            student.hidden_TD,
            student_head_VD.to(student.hidden_TD.dtype),
            signal.token_T,
            weight=weight_T,
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
        )
