# mypy: ignore-errors
"""Triton kernels: a divergence of two rows of logits, or the loss of one token, and its gradient.

One program per row. The first read sums Σ exp online, rescaled as the maximum grows; the last read writes the
gradient. Reads alternate in direction, so that the end of a row is still in the cache when the next read starts there.
A logit is at least LOWEST, so that −inf, and what lies beyond the row, count as probability 0 and never as NaN.

``opd.losses.divergences`` holds the formulas; this file repeats three of them, and tests/fidelity/test_gpu.py proves
that they agree. Importing it needs Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

KINDS = {"forward_kl": 0, "reverse_kl": 1, "jsd": 2}

LOWEST: tl.constexpr = tl.constexpr(-1e30)
FARTHEST: tl.constexpr = tl.constexpr(60.0)
"""Nats; a student's probability e^60 times smaller than the teacher's adds nothing to a mixture in float32."""

NUM_WARPS = 16
TILE_HEIGHT = 2
"""Loads in flight per thread: each is 16 bytes wide."""


@triton.jit
def _logits(pointer, offsets, inside, factor):
    x = tl.load(pointer + offsets, mask=inside, other=float("-inf")).to(tl.float32)
    return tl.maximum(x * factor, LOWEST)


@triton.jit
def _mixed(d, beta):
    """(log q − log p, log m − log p) at the mixture m = β q + (1 − β) p, from the first, which keeps small digits."""
    d = tl.minimum(d, FARTHEST)
    return d, tl.log(1.0 - beta + beta * tl.exp(d))


@triton.jit
def _divergence(
    S, T, G, SCALE, LOSS, stride_s, stride_t, stride_g, factor, beta,
    V: tl.constexpr, KIND: tl.constexpr, GRAD: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    S += row * stride_s
    T += row * stride_t
    G += row * stride_g
    SIZE: tl.constexpr = HEIGHT * WIDTH
    at = tl.arange(0, HEIGHT)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    NUM_TILES: tl.constexpr = (V + SIZE - 1) // SIZE

    max_s = tl.full([WIDTH], LOWEST, tl.float32)
    max_t = tl.full([WIDTH], LOWEST, tl.float32)
    sum_s = tl.zeros([WIDTH], tl.float32)
    sum_t = tl.zeros([WIDTH], tl.float32)
    dots = tl.zeros([WIDTH], tl.float32)
    for i in range(NUM_TILES):
        offsets = i * SIZE + at
        s = _logits(S, offsets, offsets < V, factor)
        t = _logits(T, offsets, offsets < V, factor)
        new_s = tl.maximum(max_s, tl.max(s, 0))
        new_t = tl.maximum(max_t, tl.max(t, 0))
        e_s = tl.exp(s - new_s[None, :])
        shrink_s = tl.exp(max_s - new_s)
        sum_s = sum_s * shrink_s + tl.sum(e_s, 0)
        sum_t = sum_t * tl.exp(max_t - new_t) + tl.sum(tl.exp(t - new_t[None, :]), 0)
        if KIND == 1:
            dots = dots * shrink_s + tl.sum(e_s * (s - t), 0)
        max_s = new_s
        max_t = new_t
    top_s = tl.max(max_s, 0)
    top_t = tl.max(max_t, 0)
    shrink_s = tl.exp(max_s - top_s)
    total_s = tl.sum(sum_s * shrink_s, 0)
    log_s = tl.log(total_s)
    log_t = tl.log(tl.sum(sum_t * tl.exp(max_t - top_t), 0))
    # Σ slope of reverse KL. Below, a maximum is subtracted by itself: added to the logarithm it would be rounded.
    dot = tl.sum(dots * shrink_s, 0) / total_s + (top_t - top_s + (log_t - log_s))

    if KIND == 2 and GRAD:
        dots = tl.zeros([WIDTH], tl.float32)
        for j in range(NUM_TILES):
            offsets = (NUM_TILES - 1 - j) * SIZE + at
            log_p = _logits(S, offsets, offsets < V, factor) - top_s - log_s
            log_q = _logits(T, offsets, offsets < V, factor) - top_t - log_t
            _, log_m = _mixed(log_q - log_p, beta)
            dots -= tl.sum(tl.exp(log_p) * log_m, 0)
        dot = tl.sum(dots, 0)

    scale = tl.load(SCALE + row)
    losses = tl.zeros([WIDTH], tl.float32)
    for j in range(NUM_TILES):
        i = j if KIND == 2 else NUM_TILES - 1 - j
        offsets = i * SIZE + at
        inside = offsets < V
        log_p = _logits(S, offsets, inside, factor) - top_s - log_s
        log_q = _logits(T, offsets, inside, factor) - top_t - log_t
        p = tl.exp(log_p)
        q = tl.exp(log_q)
        d = log_q - log_p
        if KIND == 0:
            losses += tl.sum(q * d + (p - q), 0)
            g = p - q
        elif KIND == 1:
            losses += tl.sum((q - p) - p * d, 0)
            g = -p * (d + dot)
        else:
            d, log_m = _mixed(d, beta)
            losses += tl.sum(beta * q * (d - log_m) - (1.0 - beta) * p * log_m, 0)
            g = (beta - 1.0) * p * (log_m + dot)
        if GRAD:
            tl.store(G + offsets, (g * scale).to(G.dtype.element_ty), mask=inside)
    tl.store(LOSS + row, tl.sum(losses, 0))


@triton.jit
def _log_sum_exp(
    S, TOKEN, TOP, LOG, LOGPROB, stride_s, factor, V: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    S += row * stride_s
    SIZE: tl.constexpr = HEIGHT * WIDTH
    at = tl.arange(0, HEIGHT)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    max_s = tl.full([WIDTH], LOWEST, tl.float32)
    sum_s = tl.zeros([WIDTH], tl.float32)
    for i in range((V + SIZE - 1) // SIZE):
        offsets = i * SIZE + at
        s = _logits(S, offsets, offsets < V, factor)
        new_s = tl.maximum(max_s, tl.max(s, 0))
        sum_s = sum_s * tl.exp(max_s - new_s) + tl.sum(tl.exp(s - new_s[None, :]), 0)
        max_s = new_s
    top_s = tl.max(max_s, 0)
    log_s = tl.log(tl.sum(sum_s * tl.exp(max_s - top_s), 0))
    tl.store(TOP + row, top_s)
    tl.store(LOG + row, log_s)
    token = tl.load(TOKEN + row)
    tl.store(LOGPROB + row, tl.load(S + token).to(tl.float32) * factor - top_s - log_s)


@triton.jit
def _token_gradient(
    S, TOKEN, TOP, LOG, SLOPE, G, stride_s, stride_g, factor, V: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    S += row * stride_s
    G += row * stride_g
    SIZE: tl.constexpr = HEIGHT * WIDTH
    at = tl.arange(0, HEIGHT)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    top_s = tl.load(TOP + row)
    log_s = tl.load(LOG + row)
    token = tl.load(TOKEN + row)
    slope = tl.load(SLOPE + row)
    NUM_TILES: tl.constexpr = (V + SIZE - 1) // SIZE
    for j in range(NUM_TILES):
        offsets = (NUM_TILES - 1 - j) * SIZE + at
        inside = offsets < V
        p = tl.exp(_logits(S, offsets, inside, factor) - top_s - log_s)
        g = slope * (tl.where(offsets == token, 1.0, 0.0) - p)
        tl.store(G + offsets, g.to(G.dtype.element_ty), mask=inside)


def divergence(
    kind: str,
    logits_NV: Tensor,
    teacher_NV: Tensor,
    scale_N: Tensor,
    grad_NV: Tensor | None,
    *,
    inverse_temperature: float,
    beta: float,
) -> Tensor:
    """The divergence of each row, float32 [N], nats.

    Args:
        kind: forward_kl, reverse_kl or jsd.
        logits_NV, teacher_NV: float32 or bfloat16, before the temperature.
        scale_N: float32, multiplies the gradient.
        grad_NV: overwritten with scale · ∂D/∂(logits / temperature); None if it is not wanted.
        inverse_temperature: multiplies the logits of both.
        beta: of jsd.
    """
    loss_N = torch.empty(len(logits_NV), dtype=torch.float32, device=logits_NV.device)
    out_NV = logits_NV if grad_NV is None else grad_NV
    if len(logits_NV):
        _divergence[(len(logits_NV),)](
            logits_NV, teacher_NV, out_NV, scale_N, loss_N,
            logits_NV.stride(0), teacher_NV.stride(0), out_NV.stride(0), inverse_temperature, beta,
            KIND=KINDS[kind], GRAD=grad_NV is not None, **_tile(logits_NV),
        )  # fmt: skip
    return loss_N


def token_logprobs(
    logits_NV: Tensor, token_N: Tensor, *, inverse_temperature: float
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The log-probability of one token a row, float32 [N], nats, and the parts of log Σ exp for the gradient."""
    logprob_N, top_N, log_N = (
        torch.empty(len(logits_NV), dtype=torch.float32, device=logits_NV.device) for _ in range(3)
    )
    if len(logits_NV):
        _log_sum_exp[(len(logits_NV),)](
            logits_NV, token_N, top_N, log_N, logprob_N, logits_NV.stride(0), inverse_temperature, **_tile(logits_NV)
        )  # fmt: skip
    return logprob_N, (top_N, log_N)


def token_gradient(
    logits_NV: Tensor,
    token_N: Tensor,
    normaliser: tuple[Tensor, Tensor],
    slope_N: Tensor,
    grad_NV: Tensor,
    *,
    inverse_temperature: float,
) -> None:
    """Overwrite ``grad_NV`` with slope · ∂log p(token)/∂(logits / temperature)."""
    if len(logits_NV):
        _token_gradient[(len(logits_NV),)](
            logits_NV, token_N, *normaliser, slope_N, grad_NV,
            logits_NV.stride(0), grad_NV.stride(0), inverse_temperature, **_tile(logits_NV),
        )  # fmt: skip


def _tile(logits_NV: Tensor) -> dict[str, int]:
    """A row of a program's tile is as wide as one 16-byte load of every thread."""
    return {
        "V": logits_NV.shape[1],
        "HEIGHT": TILE_HEIGHT,
        "WIDTH": NUM_WARPS * 32 * 16 // logits_NV.element_size(),
        "num_warps": NUM_WARPS,
    }
