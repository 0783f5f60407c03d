"""Losses over the whole vocabulary from hidden states and output heads: divergences, and cross entropy.

Suffixes: T positions, B rows of a block, V vocabulary, D student's hidden units, E teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import opd.losses.gpu as gpu
from opd.errors import OpdError
from opd.losses.chunked import HeadProduct, chunked_loss, log_softmax, make_plan
from opd.losses.divergences import Divergence, check_divergence, clipped
from opd.losses.fused import divergence_block, has_triton
from opd.losses.plan import Fused, LogitsDtype, Plan, RowLoss, Target
from opd.losses.support import Support, restricted

Distribution = Callable[[slice], tuple[Tensor, Tensor]]
"""Rows within a chunk -> a teacher's (log_q_BV, q_BV)."""

TokenFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(positions_B, log_p_B of their tokens) -> (loss_B, its derivative by log_p_B)."""


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
    per_token: Tensor | None = None,
    support: Support | None = None,
    clip: float | None = None,
    logits: LogitsDtype = "float32",
) -> Tensor:
    """Weighted sum over positions of the divergence between student and teacher: Σ_t w_t D(p_t, q_t).

    p_t = softmax(student_hidden_t · student_headᵀ / temperature), q_t likewise. No factor temperature² is
    applied: gradients shrink as the temperature grows. Positions of weight 0 are left out, so that what stands
    in them cannot leak. Under ``torch.no_grad`` no gradient work is done.

    Args:
        student_hidden: [T, D] last hidden states; gradient flows.
        student_head: [V, D] output head of the same dtype; gradient flows.
        teacher_hidden: [T, E], detached.
        teacher_head: [V, E] of the same dtype, detached.
        weight: [T] finite and ≥ 0, detached.
        divergence: ``forward_kl`` = KL(teacher ‖ student), ``reverse_kl`` = KL(student ‖ teacher), ``jsd``, or
            a registered name.
        beta: mixture weight of ``jsd``, in (0, 1).
        temperature: divides both models' logits.
        vocab_size: number of leading rows of both heads that are compared; set it where padding differs.
        chunk_tokens: positions whose logits exist at one time; by default about 140 at a vocabulary of
            150,000 on a CPU, 256 on a GPU.
        per_token: float32 [T], overwritten with D_t in nats, NaN where the weight is 0; for logging, detached.
        support: compare on the top k alone, with the rest as a tail, renormalised away or corrected for; None for the
            whole vocabulary.
        clip: the most that one token of the vocabulary adds to a position's divergence, in nats; forward_kl,
            reverse_kl and jsd alone, as OPSD writes them. None for no limit.
        logits: dtype of the logits of bfloat16 models on CUDA. ``bfloat16`` saves time and makes the gradient's error
            four to seven times as large. Elsewhere logits have the head's dtype.

    Returns:
        float32 [], nats.

    Raises:
        ConfigError: unknown divergence, or a beta at which jsd vanishes.
        OpdError: shapes, dtypes or vocabularies do not fit; a weight is negative or not finite. On CUDA values are not
            read back: the loss is NaN where a CPU raises. A weight on the CPU is checked there, and its zeros are
            skipped; zeros of a weight on CUDA cost as much as other positions.

    Source: GKD, arXiv 2306.13649; tests/fidelity/test_divergences.py. Not for a teacher that gives only some
    tokens' probabilities.
    """
    functions = check_divergence(divergence, beta=beta)
    if clip is not None:
        functions = clipped(divergence, clip)
    _check(student_hidden, student_head, weight, temperature, chunk_tokens, per_token)
    _check_teacher(student_hidden, teacher_hidden, teacher_head)
    vocab = _vocabulary(vocab_size, student=student_head, teacher=teacher_head)
    plan = make_plan(weight, vocab, temperature, chunk_tokens, hidden_TD=student_hidden, logits=logits)
    block = None if support else divergence_block(functions, beta, plan)
    product = HeadProduct(teacher_head, plan, scaled=block is None)

    def teacher_logits(chunk: slice) -> Tensor:
        rows = gpu.kept_rows(teacher_hidden.detach(), plan, chunk) if plan.on_gpu else None
        return product(teacher_hidden.detach()[plan.kept_N[chunk]] if rows is None else rows)

    def distribution(chunk: slice) -> Distribution:
        logits_NV = teacher_logits(chunk)
        return lambda rows: log_softmax(logits_NV[rows])

    def fused(chunk: slice, logits_NV: Tensor, scale_N: Tensor, grad_NV: Tensor | None) -> Tensor:
        assert block is not None
        return block(logits_NV, teacher_logits(chunk), scale_N, grad_NV)

    target = target_of(functions, distribution, beta, support)
    return chunked_loss(student_hidden, student_head, plan, target, per_token, fused if block else None)


def linear_mixture_divergence(
    student_hidden: Tensor,
    student_head: Tensor,
    teachers: Sequence[tuple[Tensor, Tensor]],
    share: Tensor,
    *,
    geometric: bool,
    weight: Tensor,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    per_token: Tensor | None = None,
    support: Support | None = None,
    clip: float | None = None,
    logits: LogitsDtype = "float32",
) -> Tensor:
    """Weighted sum over positions of the divergence between the student and one mixture of K teachers.

    Args:
        teachers: K pairs of hidden states [T, E] and output head [V, E], detached; E may differ.
        share: float32 [T, K], above 0 and adding to 1 at each position, detached.
        geometric: mix log-probabilities, q ∝ Π_k q_k^share_k, where teachers have to agree; otherwise probabilities,
            q = Σ_k share_k q_k, where one is enough. The other arguments are those of ``linear_divergence``.

    Returns:
        float32 [], nats.

    Raises:
        ConfigError, OpdError: as ``linear_divergence``; a share is not above 0.

    Source: tests/fidelity/test_mixture.py.
    """
    functions = check_divergence(divergence, beta=beta)
    if clip is not None:
        functions = clipped(divergence, clip)
    _check(student_hidden, student_head, weight, temperature, chunk_tokens, per_token)
    for hidden, head in teachers:
        _check_teacher(student_hidden, hidden, head)
    if share.shape != (len(weight), len(teachers)) or not (share.is_cuda or bool((share > 0).all())):
        raise OpdError(
            f"share has to be above 0 and of shape {(len(weight), len(teachers))}, and has shape {tuple(share.shape)}"
        )
    heads = {f"teacher {k}": head for k, (_, head) in enumerate(teachers)}
    vocab = _vocabulary(vocab_size, student=student_head, **heads)
    plan = make_plan(weight, vocab, temperature, chunk_tokens, hidden_TD=student_hidden, logits=logits)
    products = [HeadProduct(head, plan) for _, head in teachers]

    def distribution(chunk: slice) -> Distribution:
        kept_N = plan.kept_N[chunk]
        each = [product(hidden.detach()[kept_N]) for product, (hidden, _) in zip(products, teachers, strict=True)]
        share_KN1 = share.detach()[kept_N].T[:, :, None]

        def mixed(rows: slice) -> tuple[Tensor, Tensor]:
            log_q_KBV = torch.stack([log_softmax(logits_NV[rows])[0] for logits_NV in each])
            if geometric:
                return log_softmax((share_KN1[:, rows] * log_q_KBV).sum(0))
            log_q_BV = (log_q_KBV + share_KN1[:, rows].log()).logsumexp(0)
            return log_q_BV, log_q_BV.exp()

        return mixed

    target = target_of(functions, distribution, beta, support)
    return chunked_loss(student_hidden, student_head, plan, target, per_token)


def target_of(
    functions: Divergence, distribution: Callable[[slice], Distribution], beta: float, support: Support | None
) -> Target:
    """Compares the student's distribution with one that is made a chunk at a time."""

    def target(chunk: slice) -> RowLoss:
        teacher = distribution(chunk)

        def compare(rows: slice, log_p_BV: Tensor, p_BV: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
            log_q_BV, q_BV = teacher(rows)
            if support:
                return restricted(functions, support, log_p_BV, log_q_BV, beta)
            both = (log_p_BV, log_q_BV, p_BV, q_BV, beta)
            return functions.density(*both).sum(-1), lambda: functions.slope(*both)

        return compare

    return target


def linear_cross_entropy(
    student_hidden: Tensor,
    student_head: Tensor,
    token: Tensor,
    *,
    weight: Tensor,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    per_token: Tensor | None = None,
    logits: LogitsDtype = "float32",
) -> Tensor:
    """Weighted sum over positions of the token's surprise, −Σ_t w_t log p_t(token_t): supervised training.

    Args:
        token: int64 [T], each below the vocabulary's size where the weight is not 0. The other arguments are those
            of ``linear_divergence``.

    Returns:
        float32 [], nats.

    Raises:
        OpdError: shapes or dtypes do not fit, a token is outside the vocabulary, a weight is negative or not finite.

    Source: tests/fidelity/test_divergences.py.
    """
    return linear_token_loss(
        student_hidden,
        student_head,
        token,
        lambda positions_B, log_p_B: (-log_p_B, torch.full_like(log_p_B, -1.0)),
        weight=weight,
        temperature=temperature,
        vocab_size=vocab_size,
        chunk_tokens=chunk_tokens,
        per_token=per_token,
        logits=logits,
    )


def linear_token_loss(
    student_hidden: Tensor,
    student_head: Tensor,
    token: Tensor,
    function: TokenFunction,
    *,
    weight: Tensor,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    per_token: Tensor | None = None,
    logits: LogitsDtype = "float32",
) -> Tensor:
    """Weighted sum over positions of any function of the token's own log-probability: Σ_t w_t f_t(log p_t(token_t)).

    Args:
        token: int64 [T], each below the vocabulary's size where the weight is not 0.
        function: takes int64 [B], which positions, and float32 [B], the student's log-probabilities of their tokens;
            gives float32 [B] each, f and its derivative. The other arguments are those of ``linear_divergence``.

    Returns:
        float32 [].

    Raises:
        OpdError: shapes or dtypes do not fit, a token is outside the vocabulary, a weight is negative or not finite.
    """
    _check(student_hidden, student_head, weight, temperature, chunk_tokens, per_token)
    vocab = _vocabulary(vocab_size, student=student_head)
    plan = make_plan(weight, vocab, temperature, chunk_tokens, hidden_TD=student_hidden, logits=logits)
    if token.shape != weight.shape:
        raise OpdError(f"token has shape {tuple(token.shape)}, and there are {len(weight)} positions")
    token_N = token[plan.kept_N]
    wrong_N = (token_N < 0) | (token_N >= vocab)
    if plan.on_gpu:
        token_N = token_N.clamp(0, vocab - 1)
    elif bool(wrong_N.any()):
        raise OpdError(f"token holds {int(token_N.max())} or a negative id; ids have to be 0 to {vocab - 1}")

    def losses(part: slice, log_p_B: Tensor) -> tuple[Tensor, Tensor]:
        if plan.on_gpu:
            log_p_B = log_p_B.masked_fill(wrong_N[part], torch.nan)
        return function(plan.kept_N[part], log_p_B)

    def target(chunk: slice) -> RowLoss:
        def compare(rows: slice, log_p_BV: Tensor, p_BV: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
            token_B1 = token_N[chunk][rows, None]
            part = slice(chunk.start + rows.start, chunk.start + rows.stop)
            loss_B, derivative_B = losses(part, log_p_BV.gather(1, token_B1)[:, 0])
            return loss_B, lambda: torch.zeros_like(p_BV).scatter_(1, token_B1, derivative_B[:, None])

        return compare

    fused = _fused_token_loss(plan, token_N, losses) if plan.on_gpu and has_triton() else None
    return chunked_loss(student_hidden, student_head, plan, target, per_token, fused)


def _fused_token_loss(plan: Plan, token_N: Tensor, losses: Callable[[slice, Tensor], tuple[Tensor, Tensor]]) -> Fused:
    """The losses of tokens by two kernels: one reads the logits for log p, one writes the gradient."""
    import opd.losses.kernels as kernels

    factor = 1 / plan.temperature

    def fused(chunk: slice, logits_NV: Tensor, scale_N: Tensor, grad_NV: Tensor | None) -> Tensor:
        log_p_N, normaliser = kernels.token_logprobs(logits_NV, token_N[chunk], inverse_temperature=factor)
        loss_N, derivative_N = losses(chunk, log_p_N)
        if grad_NV is not None:
            slope_N = torch.where(scale_N == 0, 0.0, derivative_N * scale_N)
            kernels.token_gradient(logits_NV, token_N[chunk], normaliser, slope_N, grad_NV, inverse_temperature=factor)
        return loss_N

    return fused


@torch.no_grad()
def token_logprobs(hidden_TD: Tensor, head_VD: Tensor, token_T: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(hidden · headᵀ / temperature) at one token a position, float32 [T], nats, detached."""
    surprise_T = torch.zeros(len(token_T), dtype=torch.float32, device=hidden_TD.device)
    if len(token_T):
        ones_T = torch.ones_like(surprise_T)
        linear_cross_entropy(hidden_TD, head_VD, token_T, weight=ones_T, temperature=temperature, per_token=surprise_T)
    return -surprise_T


@torch.no_grad()
def linear_entropy(
    hidden: Tensor,
    head: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Entropy of a model at each position: −Σ p log p, float32 [T], nats, detached.

    Args:
        hidden: [T, D] last hidden states.
        head: [V, D] of the same dtype. The other arguments are those of ``linear_divergence``.
    """
    weight_T = torch.ones(len(hidden), device=hidden.device)
    plan = make_plan(weight_T, vocab_size or len(head), temperature, chunk_tokens, hidden_TD=hidden)
    product = HeadProduct(head, plan)
    entropy_T = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    for chunk in plan.chunks():
        log_p_NV, p_NV = log_softmax(product(hidden[chunk]))
        entropy_T[chunk] = -p_NV.mul_(log_p_NV).sum(-1)
    return entropy_T


def _check(
    hidden: Tensor,
    head: Tensor,
    weight: Tensor,
    temperature: float,
    chunk_tokens: int | None,
    per_token: Tensor | None,
) -> None:
    _check_pair("student", hidden, head)
    for name, given in (("weight", weight), ("per_token", per_token)):
        if given is not None and given.shape != hidden.shape[:1]:
            raise OpdError(f"{name} has shape {tuple(given.shape)}, and there are {len(hidden)} positions")
    wrong = None if weight.is_cuda else ~(weight.isfinite() & (weight >= 0))  # CUDA's values are not read back
    if wrong is not None and bool(wrong.any()):
        where = int(wrong.nonzero()[0, 0])
        raise OpdError(
            f"weight is {float(weight[where])} at position {where}; weights have to be finite and not negative"
        )
    if not 0 < temperature < math.inf:
        raise OpdError(f"temperature={temperature}: it divides the logits and has to be positive and finite")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise OpdError(f"chunk_tokens={chunk_tokens}: a chunk has at least 1 position; leave it out for the default")


def _check_pair(whose: str, hidden: Tensor, head: Tensor) -> None:
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1]:
        raise OpdError(
            f"{whose}_hidden {tuple(hidden.shape)} and {whose}_head {tuple(head.shape)} do not fit together; they have "
            "to be [T, D] and [V, D]"
        )
    if hidden.dtype != head.dtype:
        raise OpdError(f"{whose}_hidden is {hidden.dtype} and {whose}_head {head.dtype}; convert one of them")


def _check_teacher(student_hidden: Tensor, hidden: Tensor, head: Tensor) -> None:
    _check_pair("teacher", hidden, head)
    if len(hidden) != len(student_hidden):
        raise OpdError(f"teacher_hidden has {len(hidden)} positions and student_hidden {len(student_hidden)}")


def _vocabulary(vocab_size: int | None, **heads: Tensor) -> int:
    """Rows of the heads that count."""
    sizes = {whose: len(head) for whose, head in heads.items()}
    listed = " and ".join(f"the {whose}'s head has {size} rows" for whose, size in sizes.items())
    if vocab_size is None and len(set(sizes.values())) > 1:
        raise OpdError(f"{listed}; if they differ by padding alone, give vocab_size, the number of rows to compare")
    if vocab_size is not None and not 1 <= vocab_size <= min(sizes.values()):
        raise OpdError(f"vocab_size={vocab_size}, but {listed}; give at least 1 and at most the smallest")
    return vocab_size or min(sizes.values())
