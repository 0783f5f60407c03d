"""How the next token is drawn from a model's logits. Suffixes: B rows, V vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from opd.types import Sampling


def log_probs(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that tokens are drawn from, as float32 log-probabilities [B, V]; -inf where cut off.

    At temperature 0 it is the model's own distribution; ``chosen`` takes its mode.
    """
    logits = logits_BV.float()
    if sampling.temperature == 0:
        return logits.log_softmax(-1)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if sampling.top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        # A token stays if those before it do not yet reach top_p; the first always stays.
        beyond = probability.cumsum(-1) - probability >= sampling.top_p
        logits = logits.masked_fill(beyond.scatter(-1, index, beyond), float("-inf"))
    if sampling.min_p > 0:
        least = logits.amax(-1, keepdim=True) + math.log(sampling.min_p)
        logits = logits.masked_fill(logits < least, float("-inf"))
    return logits.log_softmax(-1)


def points(number: int, sampling: Sampling, generator: torch.Generator) -> Tensor | None:
    """One random number for each row, float64 [B, 1] in [0, 1); None where nothing is drawn."""
    if sampling.temperature == 0:
        return None
    return torch.rand(number, 1, dtype=torch.float64, device=generator.device, generator=generator)


def chosen(log_probs_BV: Tensor, points_B1: Tensor | None) -> Tensor:
    """Token ids [B]."""
    if points_B1 is None:
        return log_probs_BV.argmax(-1)
    # Inverse of the cumulative distribution, in float64 so that rounding cannot favour a token.
    cumulative = log_probs_BV.exp().cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cumulative, points_B1 * cumulative[:, -1:], right=True)[:, 0]
