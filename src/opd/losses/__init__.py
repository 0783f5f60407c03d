"""Losses: pure functions of tensors."""

from opd.losses.divergences import DIVERGENCES, Divergence, check_divergence, clipped, register
from opd.losses.full_vocab import (
    linear_cross_entropy,
    linear_divergence,
    linear_entropy,
    linear_mixture_divergence,
    linear_token_loss,
    token_logprobs,
)
from opd.losses.hidden import hidden_distance
from opd.losses.sampled import direct_estimate, group_advantage, overlong_penalty, policy_gradient, reward_to_go
from opd.losses.stored import stored_divergence
from opd.losses.support import Support

__all__ = [
    "DIVERGENCES",
    "Divergence",
    "Support",
    "check_divergence",
    "clipped",
    "direct_estimate",
    "group_advantage",
    "hidden_distance",
    "linear_cross_entropy",
    "linear_divergence",
    "linear_entropy",
    "linear_mixture_divergence",
    "linear_token_loss",
    "overlong_penalty",
    "policy_gradient",
    "register",
    "reward_to_go",
    "stored_divergence",
    "token_logprobs",
]
