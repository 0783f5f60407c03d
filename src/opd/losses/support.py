"""Top-k: a divergence on the few tokens that carry nearly all of the mass, with an honest account of the rest.

A sum cut off at k tokens is not a divergence: reverse KL truncated so goes negative, and is least where the
student has left the support. So the rest of the vocabulary always counts, in one of three ways (``REST``).

    dD/dlogit_i = slope_i − p_i Σ_j slope_j,   as in ``opd.losses.divergences``

Suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from opd.errors import ConfigError
from opd.losses.divergences import Divergence

Whose = Literal["teacher", "student", "union", "intersection"]
Rest = Literal["tail", "renormalise", "correct"]


@dataclass(frozen=True, slots=True)
class Support:
    """The tokens a divergence runs over, and what happens to the others.

    Attributes:
        k: tokens on each side.
        whose: the k likeliest of the ``teacher``, of the ``student``, or both sets' ``union`` or ``intersection``.
        rest: ``tail``: all other tokens together count as one more token, which makes it a divergence of coarser
            distributions. ``renormalise``: both distributions are renormalised on the support; mass outside it
            is free to go anywhere. ``correct``: the sum over the support of a density that is never negative,
            such as p log(p/q) − p + q, so that equality stays the optimum.

    Raises:
        ConfigError: k is not positive, or a name is unknown.

    Source: tail, SDPO arXiv 2601.20802 and HINT-SD arXiv 2605.17873; renormalise, LSM arXiv 2603.25562; correct, MOPD
    arXiv 2606.30406. Proof: tests/fidelity/test_support.py.
    """

    k: int
    whose: Whose = "teacher"
    rest: Rest = "tail"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(
                f"loss.signal.k={self.k}: a support has at least 1 token. Fix: set loss.signal.k to 1 or more"
            )
        for key, value, known in (("whose", self.whose, get_args(Whose)), ("rest", self.rest, get_args(Rest))):
            if value not in known:
                raise ConfigError(f"loss.signal.{key}='{value}' is unknown. Fix: use {', '.join(known)}")

    def mask(self, p_BV: Tensor, q_BV: Tensor) -> Tensor:
        """bool [B, V]: the tokens that count one by one."""
        if self.whose == "teacher":
            return largest(q_BV, self.k)
        if self.whose == "student":
            return largest(p_BV, self.k)
        student, teacher = largest(p_BV, self.k), largest(q_BV, self.k)
        return student | teacher if self.whose == "union" else student & teacher


def restricted(
    functions: Divergence, support: Support, log_p_BV: Tensor, log_q_BV: Tensor, beta: float
) -> tuple[Tensor, Callable[[], Tensor]]:
    """A divergence on a support: its value for each row, and a function that makes the slope.

    Args:
        functions: the divergence.
        support: which tokens, and what becomes of the rest.
        log_p_BV, log_q_BV: float32 log-probabilities of student and teacher over the whole vocabulary.
        beta: the divergence's own number.

    Returns:
        float32 [B], nats, and a function that returns float32 [B, V].
    """
    p_BV, q_BV = log_p_BV.exp(), log_q_BV.exp()
    inside = support.mask(p_BV, q_BV)
    if support.rest == "renormalise":
        log_p_BV, log_q_BV = _renormalised(log_p_BV, inside), _renormalised(log_q_BV, inside)
        p_BV, q_BV = log_p_BV.exp(), log_q_BV.exp()
    both = (log_p_BV, log_q_BV, p_BV, q_BV, beta)
    loss_B = _inside(functions.density(*both), inside).sum(-1)
    if support.rest == "renormalise":
        return loss_B, lambda: _softmax_gradient(_inside(functions.slope(*both), inside), _inside(p_BV, inside))
    if support.rest == "correct":
        return loss_B, lambda: _inside(functions.slope(*both), inside)
    p_tail, q_tail = (_inside(x, ~inside).sum(-1, keepdim=True).clamp_min(_TINY) for x in (p_BV, q_BV))
    tail = (p_tail.log(), q_tail.log(), p_tail, q_tail, beta)
    # A tail token shares the slope of the tail in proportion to its part of it.
    return loss_B + functions.density(*tail)[:, 0], lambda: torch.where(
        inside, functions.slope(*both), p_BV / p_tail * functions.slope(*tail)
    )


_TINY = torch.finfo(torch.float32).tiny


def largest(p_BV: Tensor, k: int) -> Tensor:
    """bool [B, V]: the k largest of each row; probabilities and their logarithms give the same."""
    ids_BK = p_BV.topk(min(k, p_BV.shape[-1])).indices
    return torch.zeros_like(p_BV, dtype=torch.bool).scatter_(-1, ids_BK, True)


def _inside(x_BV: Tensor, inside: Tensor) -> Tensor:
    """Zero elsewhere, by selection: what stands there may be infinite."""
    return torch.where(inside, x_BV, 0.0)


def _renormalised(log_p_BV: Tensor, inside: Tensor) -> Tensor:
    return log_p_BV - log_p_BV.masked_fill(~inside, -torch.inf).logsumexp(-1, keepdim=True)


def _softmax_gradient(slope_BV: Tensor, p_BV: Tensor) -> Tensor:
    """The gradient itself: it sums to zero over each row, so that the outer softmax takes nothing more off."""
    return slope_BV - p_BV * slope_BV.sum(-1, keepdim=True)
