"""Losses over the whole vocabulary from hidden states and output heads, without ever storing [T, V] logits.

One autograd function walks over chunks of positions. For each it makes the logits, the loss and the
gradients of hidden states and head, and forgets the logits; the backward pass only scales. So neither
head product is computed twice, and nothing of size [tokens, vocabulary] exists beyond a chunk.

Suffixes: T positions, N positions of a chunk, V vocabulary, D student's hidden units, E teacher's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from opd.errors import OpdError
from opd.losses.divergences import check_divergence

CHUNK_BYTES = 64 * 2**20
"""Size of one [N, V] float32 buffer when the caller does not choose: big enough for fast products."""

RowLoss = Callable[[slice, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(rows, log_p_NV, p_NV) -> (loss per row [N], slope [N, V]); may overwrite its tensors."""


def linear_divergence(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    weight: Tensor,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Weighted sum over positions of the divergence between student and teacher: Σ_t w_t D(p_t, q_t).

    p_t = softmax(student_hidden_t · student_headᵀ / temperature), q_t likewise; no factor temperature² is
    applied. Positions of weight 0 are left out, so that what stands in them cannot leak.

    Args:
        student_hidden: [T, D] last hidden states; gradient flows.
        student_head: [V, D] output head; gradient flows.
        teacher_hidden: [T, E], detached.
        teacher_head: [V, E], detached.
        weight: [T] float32, finite and ≥ 0.
        divergence: ``forward_kl`` = KL(teacher ‖ student), ``reverse_kl`` = KL(student ‖ teacher), ``jsd``, or
            a registered name.
        beta: mixture weight of ``jsd``, in (0, 1).
        temperature: divides both models' logits.
        vocab_size: compare the first so many rows of both heads, where padding differs.
        chunk_tokens: positions whose logits exist at one time; by default about 64 MB of them.

    Returns:
        float32 [], nats.

    Raises:
        ConfigError: unknown divergence, or a beta at which jsd vanishes.
        OpdError: shapes do not fit, or a weight is negative or not finite.

    Source: GKD, arXiv 2306.13649; tests/fidelity/test_divergences.py. Not for a teacher that gives only some
    tokens' probabilities.
    """
    functions = check_divergence(divergence, beta=beta)
    _check(student_hidden, student_head, weight)
    if teacher_hidden.shape[0] != student_hidden.shape[0] or teacher_hidden.shape[-1] != teacher_head.shape[-1]:
        raise OpdError(
            f"teacher_hidden {tuple(teacher_hidden.shape)} fits neither {student_hidden.shape[0]} positions nor the "
            f"teacher's head {tuple(teacher_head.shape)}"
        )
    if vocab_size is None and student_head.shape[0] != teacher_head.shape[0]:
        raise OpdError(
            f"the student's head has {student_head.shape[0]} rows and the teacher's {teacher_head.shape[0]}; if they "
            "differ by padding alone, give vocab_size, the number of rows to compare"
        )
    rows = vocab_size or student_head.shape[0]
    kept = weight.nonzero()[:, 0]
    teacher_hidden, teacher_head = teacher_hidden.detach()[kept], teacher_head.detach()[:rows]

    def compare(where: slice, log_p: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        log_q, q = _log_softmax(teacher_hidden[where], teacher_head, temperature)
        loss = functions.density(log_p, log_q, p, q, beta).sum(-1)
        return loss, functions.slope(log_p, log_q, p, q, beta)

    return _sum(student_hidden[kept], student_head[:rows], weight[kept], compare, temperature, chunk_tokens)


def linear_cross_entropy(
    student_hidden: Tensor,
    student_head: Tensor,
    token: Tensor,
    *,
    weight: Tensor,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Weighted sum over positions of −log p_t(token_t): supervised training.

    Args:
        token: int64 [T]. The others are as in ``linear_divergence``.

    Returns:
        float32 [], nats.

    Raises:
        OpdError: shapes do not fit, or a weight is negative or not finite.

    Source: tests/fidelity/test_divergences.py.
    """
    _check(student_hidden, student_head, weight)
    kept = weight.nonzero()[:, 0]
    target = token[kept, None]

    def compare(where: slice, log_p: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        loss = -log_p.gather(1, target[where])[:, 0]
        return loss, torch.zeros_like(p).scatter_(1, target[where], -1.0)

    rows = vocab_size or student_head.shape[0]
    return _sum(student_hidden[kept], student_head[:rows], weight[kept], compare, temperature, chunk_tokens)


def _sum(
    hidden_TD: Tensor,
    head_VD: Tensor,
    weight_T: Tensor,
    compare: RowLoss,
    temperature: float,
    chunk_tokens: int | None,
) -> Tensor:
    size = chunk_tokens or max(CHUNK_BYTES // (4 * head_VD.shape[0]), 1)
    loss: Tensor = _ChunkedLoss.apply(hidden_TD, head_VD, weight_T, compare, temperature, size)
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """Value and gradients chunk by chunk; see the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        head_VD: Tensor,
        weight_T: Tensor,
        compare: RowLoss,
        temperature: float,
        size: int,
    ) -> Tensor:
        weight_T = weight_T.float()
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        grad_hidden_TD = torch.empty_like(hidden_TD) if wants_hidden else None
        grad_head_VD = torch.zeros_like(head_VD, dtype=torch.float32) if wants_head else None
        total = torch.zeros((), device=hidden_TD.device)
        for start in range(0, len(hidden_TD), size):
            where = slice(start, start + size)
            log_p_NV, p_NV = _log_softmax(hidden_TD[where], head_VD, temperature)
            loss_N, slope_NV = compare(where, log_p_NV, p_NV)
            total += loss_N @ weight_T[where]
            if not (wants_hidden or wants_head):
                continue
            grad_NV = slope_NV.addcmul_(p_NV, slope_NV.sum(-1, keepdim=True), value=-1)
            grad_NV = grad_NV.mul_(weight_T[where, None] / temperature).to(hidden_TD.dtype)
            if grad_hidden_TD is not None:
                torch.mm(grad_NV, head_VD, out=grad_hidden_TD[where])
            if grad_head_VD is not None:
                if grad_NV.dtype == torch.float32:
                    grad_head_VD.addmm_(grad_NV.T, hidden_TD[where])
                else:
                    grad_head_VD += grad_NV.T @ hidden_TD[where]
        saved = [g for g in (grad_hidden_TD, grad_head_VD) if g is not None]
        ctx.save_for_backward(*saved)
        ctx.head_dtype = head_VD.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = list(ctx.saved_tensors)
        grad_hidden = saved.pop(0) * grad if ctx.needs_input_grad[0] else None
        grad_head = (saved.pop(0) * grad).to(ctx.head_dtype) if ctx.needs_input_grad[1] else None
        return grad_hidden, grad_head, None, None, None, None


def _log_softmax(hidden_ND: Tensor, head_VD: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and probabilities [N, V], float32 whatever the inputs."""
    logits = (hidden_ND @ head_VD.T).float()
    if temperature != 1:
        logits /= temperature
    log_p = logits.log_softmax(-1)
    return log_p, log_p.exp()


def _check(hidden: Tensor, head: Tensor, weight: Tensor) -> None:
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1]:
        raise OpdError(f"student_hidden {tuple(hidden.shape)} and student_head {tuple(head.shape)} do not fit together")
    if weight.shape != hidden.shape[:1]:
        raise OpdError(f"weight has shape {tuple(weight.shape)}, and there are {hidden.shape[0]} positions")
    if not bool((weight.isfinite() & (weight >= 0)).all()):
        raise OpdError("weight has to be finite and not negative at every position")
