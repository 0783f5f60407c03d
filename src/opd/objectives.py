"""Objectives: a kind of signal with the loss that fits it, as the loop calls them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from opd.losses import linear_cross_entropy, linear_divergence
from opd.types import FullSignal, Signal, TokenSignal


@dataclass(frozen=True, kw_only=True)
class FullVocabulary:
    """A divergence between whole distributions; the fields are ``linear_divergence``'s arguments."""

    divergence: str = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    vocab_size: int | None = None
    chunk_tokens: int | None = None

    def __call__(self, student_hidden_TD: Tensor, student_head_VD: Tensor, signal: Signal, weight_T: Tensor) -> Tensor:
        """The weighted sum of divergences, float32 []."""
        assert isinstance(signal, FullSignal)
        return linear_divergence(
            student_hidden_TD,
            student_head_VD.to(student_hidden_TD.dtype),
            signal.hidden_TD,
            signal.head_VD.to(signal.hidden_TD.dtype),
            weight=weight_T,
            divergence=self.divergence,
            beta=self.beta,
            temperature=self.temperature,
            vocab_size=self.vocab_size,
            chunk_tokens=self.chunk_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Supervised training: the token in the rollout is the target."""

    temperature: float = 1.0
    chunk_tokens: int | None = None

    def __call__(self, student_hidden_TD: Tensor, student_head_VD: Tensor, signal: Signal, weight_T: Tensor) -> Tensor:
        """The weighted sum of -log p(token), float32 []."""
        assert isinstance(signal, TokenSignal)
        return linear_cross_entropy(
            student_hidden_TD,
            student_head_VD.to(student_hidden_TD.dtype),
            signal.token_T,
            weight=weight_T,
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
        )
