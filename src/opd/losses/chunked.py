"""Σ_t w_t loss_t and its gradients, chunk by chunk over positions, without ever storing [T, V] logits.

One walk over the positions makes the logits of a chunk, its losses and its gradients, and forgets the logits.
Backward only hands the gradients out: no head product is computed twice. Losses differ in their ``Target``, which
compares the rows of a chunk.

    dloss/dlogit_i = slope_i − p_i Σ_j slope_j,   p = softmax(hidden · headᵀ / temperature)

Weight and 1/temperature multiply the [N, D] sides of the gradient products, not the [N, V] one. On a CPU the
element-wise part runs over a few rows at a time, so that its temporaries stay in the cache. On CUDA the walk is
that of ``opd.losses.gpu``.

Suffixes: T positions, N positions of a chunk, B rows of a block, V vocabulary, D hidden units.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import opd.losses.gpu as gpu
from opd.errors import OpdError
from opd.losses.plan import Fused, LogitsDtype, Plan, RowLoss, Target, slices

CPU_CHUNK_BYTES, GPU_CHUNK_BYTES = 80 * 2**20, 2**29
"""[N, V] float32 of one chunk when the caller does not choose; on a CPU twice as much gains 2 %."""
CPU_BLOCK_BYTES, GPU_BLOCK_BYTES = 2**21, 2**26
"""Size of one element-wise temporary: a share of a core's cache; on a GPU enough to fill it."""
CPU_SLICE_BYTES, GPU_SLICE_BYTES = 2**22, 2**28
"""Part of a head that one product takes: on a CPU it is read from memory once and stays in the cache."""


def make_plan(
    weight_T: Tensor,
    vocab: int,
    temperature: float,
    chunk_tokens: int | None,
    *,
    hidden_TD: Tensor,
    logits: LogitsDtype = "float32",
) -> Plan:
    """A plan for the positions whose weight is not 0, in chunks of about the same size."""
    if gpu.runs_on_gpu(hidden_TD):
        kept_N, weight_N = gpu.kept_positions(weight_T.detach(), hidden_TD.device)
        dtype = torch.float32 if logits == "float32" else hidden_TD.dtype
        chunk, group = gpu.chunk_and_group(vocab, dtype, hidden_TD.dtype, chunk_tokens)
        return Plan(kept_N, weight_N, vocab, temperature, chunk, on_gpu=True, group=group, logits=dtype)
    chunk_bytes = CPU_CHUNK_BYTES if weight_T.device.type == "cpu" else GPU_CHUNK_BYTES
    kept_N = weight_T.detach().nonzero()[:, 0]
    most = chunk_tokens or max(chunk_bytes // (4 * vocab), 1)
    num_chunks = max(-(-len(kept_N) // most), 1)
    return Plan(kept_N, weight_T.detach()[kept_N].float(), vocab, temperature, max(-(-len(kept_N) // num_chunks), 1))


class HeadProduct:
    """logits = hidden · headᵀ / temperature, chunk after chunk into one buffer [N, V] of the plan's dtype.

    Args:
        head_VD: output head.
        plan: positions, temperature and dtype.
        scaled: divide by the temperature; False for a ``Fused`` comparison, which divides by it itself.
    """

    def __init__(self, head_VD: Tensor, plan: Plan, *, scaled: bool = True) -> None:
        self.head_VD = head_VD.detach()[: plan.vocab]
        self.temperature = plan.temperature if scaled else 1.0
        self.on_gpu = plan.on_gpu
        num_rows = min(plan.chunk, len(plan.kept_N))
        if self.on_gpu:
            self.buffer_NV = gpu.aligned_rows(num_rows, plan.vocab, head_VD.device, plan.logits or head_VD.dtype)
        else:
            self.buffer_NV = head_VD.new_empty(num_rows, plan.vocab)

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """The chunk's logits, valid until the next call."""
        logits_NV = self.buffer_NV[: len(hidden_ND)]
        if self.on_gpu:
            gpu.product(hidden_ND, self.head_VD.T, out=logits_NV)
            return logits_NV if self.temperature == 1 else logits_NV.mul_(1 / self.temperature)
        for part in _head_slices(self.head_VD):
            out = logits_NV[:, part]
            torch.addmm(out, hidden_ND, self.head_VD[part].T, beta=0, alpha=1 / self.temperature, out=out)
        return logits_NV


def log_softmax(logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and probabilities, new float32 tensors whatever the input."""
    log_p_BV = torch.log_softmax(logits_BV, -1, dtype=torch.float32)
    return log_p_BV, log_p_BV.exp()


def chunked_loss(
    hidden_TD: Tensor,
    head_VD: Tensor,
    plan: Plan,
    target: Target,
    per_token_T: Tensor | None = None,
    fused: Fused | None = None,
) -> Tensor:
    """Weighted sum of a loss over positions, Σ_t w_t loss_t, with gradients for hidden states and head.

    Args:
        hidden_TD: [T, D]; gradient flows.
        head_VD: [V, D]; gradient flows.
        plan: positions, weights and chunk size.
        target: makes the losses and slopes.
        per_token_T: float32 [T], filled with each position's loss, NaN where the weight is 0.
        fused: on a GPU, makes the losses and gradients of a chunk in place of ``target``.

    Returns:
        float32 [], nats.

    Source: tests/fidelity/test_divergences.py. Not for second derivatives, nor for two backward passes through one
    loss: the gradients are handed out, not kept.
    """
    if per_token_T is not None:
        per_token_T.fill_(torch.nan)
    if not (torch.is_grad_enabled() and (hidden_TD.requires_grad or head_VD.requires_grad)):
        return _walk(hidden_TD.detach(), head_VD.detach(), plan, target, None, per_token_T, fused)
    loss: Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden_TD, head_VD, plan, target, per_token_T, fused
    )
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """Value and gradients in forward; backward scales the gradients and gives them away."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        head_VD: Tensor,
        plan: Plan,
        target: Target,
        per_token_T: Tensor | None,
        fused: Fused | None,
    ) -> Tensor:
        kind = gpu.GroupedGradients if plan.on_gpu else _Gradients
        gradients = kind(hidden_TD, head_VD, plan, ctx.needs_input_grad)
        total = _walk(hidden_TD, head_VD, plan, target, gradients, per_token_T, fused)
        ctx.gradients = gradients.take(hidden_TD, head_VD)
        ctx.dtypes = hidden_TD.dtype, head_VD.dtype
        ctx.on_gpu = plan.on_gpu
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise OpdError(
                "the gradients of this loss were handed out by an earlier backward. Fix: compute the loss again"
            )
        # A reference kept here would make autograd copy the head's gradient instead of taking it over.
        gradients, ctx.gradients = ctx.gradients, None
        if ctx.on_gpu:
            pairs = zip(gradients, ctx.dtypes, strict=True)
            return *(g if g is None else gpu.scaled(g, grad, dtype) for g, dtype in pairs), None, None, None, None
        if bool(grad != 1):
            gradients = [g if g is None else g.mul_(grad) for g in gradients]
        cast = [g if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return *cast, None, None, None, None


def _walk(
    hidden_TD: Tensor,
    head_VD: Tensor,
    plan: Plan,
    target: Target,
    gradients: _Gradients | gpu.GroupedGradients | None,
    per_token_T: Tensor | None,
    fused: Fused | None,
) -> Tensor:
    """The sum over all chunks; gradients are collected on the way."""
    if plan.on_gpu:
        assert not isinstance(gradients, _Gradients)
        return _walk_on_gpu(hidden_TD, head_VD, plan, target, gradients, per_token_T, fused)
    assert not isinstance(gradients, gpu.GroupedGradients)
    product = HeadProduct(head_VD, plan)
    loss_N = torch.empty_like(plan.weight_N)
    for chunk in plan.chunks():
        hidden_ND = hidden_TD[plan.kept_N[chunk]]
        logits_NV = product(hidden_ND)
        _compare(logits_NV, target(chunk), loss_N[chunk], wants_slope=gradients is not None)
        if gradients is not None:
            gradients.add(chunk, logits_NV, hidden_ND)
    if per_token_T is not None:
        per_token_T[plan.kept_N] = loss_N
    return loss_N @ plan.weight_N


def _walk_on_gpu(
    hidden_TD: Tensor,
    head_VD: Tensor,
    plan: Plan,
    target: Target,
    gradients: gpu.GroupedGradients | None,
    per_token_T: Tensor | None,
    fused: Fused | None,
) -> Tensor:
    """The same sum without a synchronisation; a position of weight 0 counts for nothing, by selection."""
    product = HeadProduct(head_VD, plan, scaled=fused is None)
    loss_N = torch.empty_like(plan.weight_N)
    scale_N = plan.weight_N / plan.temperature
    for chunk in plan.chunks():
        logits_NV = product(gpu.kept_rows(hidden_TD, plan, chunk))
        grad_NV = None if gradients is None else gradients.room(chunk)
        if fused is None:
            gpu.compare(logits_NV, target(chunk), loss_N[chunk], scale_N[chunk], grad_NV)
        else:
            loss_N[chunk] = fused(chunk, logits_NV, scale_N[chunk], grad_NV)
        if gradients is not None:
            gradients.add(chunk)
    counts_N = plan.weight_N != 0
    if per_token_T is not None:
        per_token_T[plan.kept_N] = torch.where(counts_N, loss_N, torch.nan)
    return torch.where(counts_N, loss_N, 0.0) @ plan.weight_N


def _compare(logits_NV: Tensor, compare: RowLoss, loss_N: Tensor, *, wants_slope: bool) -> None:
    """Fill in the losses of a chunk; overwrite ``logits_NV`` with their gradient if that is wanted.

    Nothing small may be kept from one block to the next: it would lie between the big temporaries on the heap, and
    the allocator could not use their space again.
    """
    num_rows, vocab = logits_NV.shape
    block_bytes = CPU_BLOCK_BYTES if logits_NV.device.type == "cpu" else GPU_BLOCK_BYTES
    for rows in slices(num_rows, max(block_bytes // (4 * vocab), 1)):
        log_p_BV, p_BV = log_softmax(logits_NV[rows])
        loss_N[rows], make_slope = compare(rows, log_p_BV, p_BV)
        if wants_slope:
            slope_BV = make_slope()
            torch.addcmul(slope_BV, p_BV, slope_BV.sum(-1, keepdim=True), value=-1, out=logits_NV[rows])


class _Gradients:
    """Gradients of hidden states and head, as far as they are wanted; the head's is summed in float32."""

    def __init__(self, hidden_TD: Tensor, head_VD: Tensor, plan: Plan, wants: tuple[bool, ...]) -> None:
        self.plan = plan
        self.head_VD = head_VD[: plan.vocab]
        self.hidden = hidden_TD.new_empty(len(plan.kept_N), hidden_TD.shape[1]) if wants[0] else None
        self.head = torch.empty_like(head_VD, dtype=torch.float32) if wants[1] else None
        self.num_added = 0

    def add(self, chunk: slice, grad_NV: Tensor, hidden_ND: Tensor) -> None:
        """Add a chunk, given the gradient of its unweighted losses with respect to its logits."""
        scale_N1 = (self.plan.weight_N[chunk, None] / self.plan.temperature).to(hidden_ND.dtype)
        if self.hidden is not None:
            torch.mm(grad_NV, self.head_VD, out=self.hidden[chunk]).mul_(scale_N1)
        if self.head is not None:
            self._add_to_head(grad_NV, hidden_ND * scale_N1)
        self.num_added += 1

    def _add_to_head(self, grad_NV: Tensor, hidden_ND: Tensor) -> None:
        assert self.head is not None
        # The first chunk writes instead of adding, which saves filling the buffer with zeros.
        beta = 0 if self.num_added == 0 else 1
        for part in _head_slices(self.head_VD):
            out = self.head[part]
            if hidden_ND.dtype == torch.float32:
                torch.addmm(out, grad_NV[:, part].T, hidden_ND, beta=beta, out=out)
            elif beta == 0:
                out.copy_(grad_NV[:, part].T @ hidden_ND)
            else:
                out += grad_NV[:, part].T @ hidden_ND

    def take(self, hidden_TD: Tensor, head_VD: Tensor) -> list[Tensor | None]:
        """Both gradients in the shapes of the inputs: zero at positions and rows of the head that do not count."""
        hidden, head = self.hidden, self.head
        if hidden is not None and len(hidden) < len(hidden_TD):
            hidden = torch.zeros_like(hidden_TD).index_copy_(0, self.plan.kept_N, hidden)
        if head is not None:
            head[self.plan.vocab if self.num_added else 0 :].zero_()
        return [hidden, head]


def _head_slices(head_VD: Tensor) -> Iterator[slice]:
    size = CPU_SLICE_BYTES if head_VD.device.type == "cpu" else GPU_SLICE_BYTES
    return slices(len(head_VD), max(size // (head_VD.element_size() * head_VD.shape[1]), 1))
