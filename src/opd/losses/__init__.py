"""Losses: pure functions of tensors."""

from opd.losses.divergences import DIVERGENCES, Divergence, check_divergence, register
from opd.losses.full_vocab import linear_cross_entropy, linear_divergence

__all__ = [
    "DIVERGENCES",
    "Divergence",
    "check_divergence",
    "linear_cross_entropy",
    "linear_divergence",
    "register",
]
