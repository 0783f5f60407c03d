# mypy: ignore-errors
"""Triton kernels: a divergence of two rows of logits, or the loss of one token, and its gradient.

One program per row. The first read sums Σ exp online, rescaled as the maximum grows; the last read writes the
gradient. Reads alternate in direction, so that the end of a row is still in the cache when the next read starts there.
A logit is at least LOWEST, so that −inf, and what lies beyond the row, count as probability 0 and never as NaN.

``opd.losses.divergences`` holds the formulas; this file repeats three of them, and tests/fidelity/test_gpu.py proves
that they agree. Importing it needs Triton.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

KINDS = {"forward_kl": 0, "reverse_kl": 1, "jsd": 2}

LOWEST: tl.constexpr = tl.constexpr(-1e30)
FARTHEST: tl.constexpr = tl.constexpr(60.0)
"""A student's probability 2^60 times smaller than the teacher's adds nothing to a mixture in float32."""

NUM_WARPS = 16
HEIGHT = 1
"""Number of 16-byte loads per thread, row and tile."""
STAGES = 3
"""Number of tiles in the pipeline: one in work, the others on their way into shared memory."""

IN_HARDWARE: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1" and torch.version.hip is None)
"""Whether log2 is NVIDIA's instruction; ``tl.log2`` takes a dozen instructions."""

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def _logits(pointer, offsets, V):
    x = tl.load(pointer + offsets, mask=offsets < V, other=float("-inf")).to(tl.float32)
    return tl.maximum(x, LOWEST)


@triton.jit
def _lg2(x):
    return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _log2(x):
    return _lg2(x) if IN_HARDWARE else tl.log2(x)


@triton.jit
def _mixed(d, beta):
    """(log q − log p, log m − log p) at the mixture m = β q + (1 − β) p, from the first, which keeps small digits.

    All in units of log 2.
    """
    d = tl.minimum(d, FARTHEST)
    return d, _log2(1.0 - beta + beta * tl.exp2(d))


@triton.jit
def _divergence(
    S, T, G, SCALE, LOSS, stride_s, stride_t, stride_g, factor, beta, V: tl.constexpr, KIND: tl.constexpr,
    GRAD: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    S += row * stride_s
    T += row * stride_t
    G += row * stride_g
    SIZE: tl.constexpr = LANES * WIDTH
    NUM_TILES: tl.constexpr = (V + SIZE - 1) // SIZE
    at = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    unit = factor * LOG2E  # from logits to powers of 2

    max_s = tl.full([LANES], LOWEST, tl.float32)
    max_t = tl.full([LANES], LOWEST, tl.float32)
    sum_s = tl.zeros([LANES], tl.float32)
    sum_t = tl.zeros([LANES], tl.float32)
    dots = tl.zeros([LANES], tl.float32)
    for i in tl.range(0, NUM_TILES, num_stages=STAGES):
        s = _logits(S, i * SIZE + at, V)
        t = _logits(T, i * SIZE + at, V)
        new_s = tl.maximum(max_s, tl.max(s, 1))
        new_t = tl.maximum(max_t, tl.max(t, 1))
        e_s = tl.exp2((s - new_s[:, None]) * unit)
        e_t = tl.exp2((t - new_t[:, None]) * unit)
        shrink_s = tl.exp2((max_s - new_s) * unit)
        sum_s = sum_s * shrink_s + tl.sum(e_s, 1)
        sum_t = sum_t * tl.exp2((max_t - new_t) * unit) + tl.sum(e_t, 1)
        if KIND == 1:
            dots = dots * shrink_s + tl.sum(e_s * (t - s), 1)
        max_s = new_s
        max_t = new_t
    top_s = tl.max(max_s, 0)
    top_t = tl.max(max_t, 0)
    shrink_s = tl.exp2((max_s - top_s) * unit)
    total_s = tl.sum(sum_s * shrink_s, 0)
    total_t = tl.sum(sum_t * tl.exp2((max_t - top_t) * unit), 0)
    # Below, a maximum is subtracted by itself: added to the logarithm it would be rounded.
    log_s = tl.log2(total_s)
    log_t = tl.log2(total_t)
    # Minus the mean of log q − log p, or of log m − log p, under p.
    dot = (top_t - top_s) * unit + (log_t - log_s) - tl.sum(dots * shrink_s, 0) / total_s * unit

    if KIND == 2 and GRAD:
        dots = tl.zeros([LANES], tl.float32)
        for j in tl.range(0, NUM_TILES, num_stages=STAGES):
            i = NUM_TILES - 1 - j
            log_p = (_logits(S, i * SIZE + at, V) - top_s) * unit - log_s
            log_q = (_logits(T, i * SIZE + at, V) - top_t) * unit - log_t
            _, log_m = _mixed(log_q - log_p, beta)
            dots -= tl.sum(tl.exp2(log_p) * log_m, 1)
        dot = tl.sum(dots, 0)

    scale = tl.load(SCALE + row)
    losses = tl.zeros([LANES], tl.float32)
    for j in tl.range(0, NUM_TILES, num_stages=STAGES):
        i = j if KIND == 2 else NUM_TILES - 1 - j
        offsets = i * SIZE + at
        log_p = (_logits(S, offsets, V) - top_s) * unit - log_s
        log_q = (_logits(T, offsets, V) - top_t) * unit - log_t
        p = tl.exp2(log_p)
        q = tl.exp2(log_q)
        d = log_q - log_p
        if KIND == 0:
            losses += tl.sum(q * (d * LN2) + (p - q), 1)
            g = (p - q) * scale
        elif KIND == 1:
            losses += tl.sum((q - p) - p * (d * LN2), 1)
            g = p * ((d + dot) * (scale * -LN2))
        else:
            d, log_m = _mixed(d, beta)
            losses += tl.sum(beta * q * (d - log_m) - (1.0 - beta) * p * log_m, 1)
            g = p * ((log_m + dot) * (scale * (beta - 1.0) * LN2))
        if GRAD:
            tl.store(G + offsets, g.to(G.dtype.element_ty), mask=offsets < V)
    loss = tl.sum(losses, 0)
    tl.store(LOSS + row, loss * LN2 if KIND == 2 else loss)


@triton.jit
def _log_sum_exp(
    S, TOKEN, TOP, LOG, LOGPROB, stride_s, factor, V: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    S += row * stride_s
    SIZE: tl.constexpr = LANES * WIDTH
    NUM_TILES: tl.constexpr = (V + SIZE - 1) // SIZE
    at = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    unit = factor * LOG2E
    max_s = tl.full([LANES], LOWEST, tl.float32)
    sum_s = tl.zeros([LANES], tl.float32)
    for i in tl.range(0, NUM_TILES, num_stages=STAGES):
        s = _logits(S, i * SIZE + at, V)
        new_s = tl.maximum(max_s, tl.max(s, 1))
        sum_s = sum_s * tl.exp2((max_s - new_s) * unit) + tl.sum(tl.exp2((s - new_s[:, None]) * unit), 1)
        max_s = new_s
    top_s = tl.max(max_s, 0)
    log_s = tl.log2(tl.sum(sum_s * tl.exp2((max_s - top_s) * unit), 0))
    tl.store(TOP + row, top_s)
    tl.store(LOG + row, log_s)
    token = tl.load(TOKEN + row)
    tl.store(LOGPROB + row, (tl.load(S + token).to(tl.float32) - top_s) * factor - log_s * LN2)


@triton.jit
def _token_gradient(
    S, TOKEN, TOP, LOG, SLOPE, G, stride_s, stride_g, factor, V: tl.constexpr, LANES: tl.constexpr,
    WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    S += row * stride_s
    G += row * stride_g
    SIZE: tl.constexpr = LANES * WIDTH
    NUM_TILES: tl.constexpr = (V + SIZE - 1) // SIZE
    at = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    unit = factor * LOG2E
    top_s = tl.load(TOP + row)
    log_s = tl.load(LOG + row)
    token = tl.load(TOKEN + row)
    slope = tl.load(SLOPE + row)
    for j in tl.range(0, NUM_TILES, num_stages=STAGES):
        offsets = (NUM_TILES - 1 - j) * SIZE + at
        p = tl.exp2((_logits(S, offsets, V) - top_s) * unit - log_s)
        g = slope * (tl.where(offsets == token, 1.0, 0.0) - p)
        tl.store(G + offsets, g.to(G.dtype.element_ty), mask=offsets < V)


@triton.jit
def _scaled(X, FACTOR, Y, n, SIZE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    x = tl.load(X + at, mask=at < n).to(tl.float32) * tl.load(FACTOR).to(tl.float32)
    tl.store(Y + at, x.to(Y.dtype.element_ty), mask=at < n)


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
    _launch(
        _divergence, len(logits_NV), logits_NV, teacher_NV, out_NV, scale_N, loss_N,
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
    _launch(
        _log_sum_exp, len(logits_NV), logits_NV, token_N, top_N, log_N, logprob_N,
        logits_NV.stride(0), inverse_temperature, **_tile(logits_NV),
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
    _launch(
        _token_gradient, len(logits_NV), logits_NV, token_N, *normaliser, slope_N, grad_NV,
        logits_NV.stride(0), grad_NV.stride(0), inverse_temperature, **_tile(logits_NV),
    )  # fmt: skip


def scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """x · factor, rounded to another dtype, in one read and one write; ``x`` is contiguous, ``factor`` is [] ."""
    y = torch.empty_like(x, dtype=dtype)
    size = 4096
    _launch(_scaled, triton.cdiv(x.numel(), size), x, factor, y, x.numel(), SIZE=size, num_warps=8)
    return y


def _launch(kernel, num_programs: int, tensor: Tensor, *arguments, **constants) -> None:
    """Run a kernel on the device of its first tensor, which need not be the current one."""
    if num_programs:
        with torch.cuda.device_of(tensor):
            kernel[(num_programs,)](tensor, *arguments, **constants)


def _tile(logits_NV: Tensor) -> dict[str, int]:
    """A lane is one 16-byte load of one thread, so that its maximum and sum need no other thread."""
    return {
        "V": logits_NV.shape[1],
        "LANES": NUM_WARPS * 32 * HEIGHT,
        "WIDTH": 16 // logits_NV.element_size(),
        "STAGES": STAGES,
        "num_warps": NUM_WARPS,
    }
