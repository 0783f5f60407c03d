"""The walk over positions on CUDA: products with float32 output, gradients of several chunks in one product, no syncs.

A product whose inner dimension is a chunk of some 256 positions would spend its time on reading and writing the
[V, D] float32 sum. So the gradients of a group of chunks are kept in the head's dtype, [G, V], and multiplied at once.

No value is read back to the host. Where a CPU raises on a wrong weight or token, here the loss is NaN. A weight on
the CPU lets positions of weight 0 be skipped; a weight on the GPU does not, since their number is not known here.
Their hidden states are replaced by zeros.

Suffixes: T positions, N positions of a chunk, B rows of a block, G positions of a group, V vocabulary, D hidden units.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

import opd.losses.fused as fused
from opd.losses.plan import Plan, RowLoss, slices

log = logging.getLogger("opd.losses")

CHUNK_BYTES = 160 * 10**6
"""Size of the logits [N, V] of one model and one chunk: 256 float32 rows at a vocabulary of 151,936."""
GROUP_BYTES = 480 * 10**6
"""Size of the gradients [G, V] of one group of chunks: 1,536 bfloat16 rows at the same vocabulary."""
BLOCK_BYTES = 2**26
"""Size of one float32 temporary where neither a kernel nor a compiled function compares the rows."""
TILE_ROWS = 128
"""Rows that a matrix product works on at a time; a chunk is a multiple of it, so that no tile is half empty."""
ALIGNMENT = 64
"""Elements; rows of logits start at multiples of it, because products are several times slower on odd addresses."""


def runs_on_gpu(hidden_TD: Tensor) -> bool:
    """Whether the loss takes this walk. float16 does not: weighted gradients would fall below its smallest number."""
    return hidden_TD.is_cuda and hidden_TD.dtype != torch.float16


def kept_positions(weight_T: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The positions to compute, int64 [N], and their weights, float32 [N]; both on ``device``.

    All positions, unless the weights lie elsewhere than the hidden states. A weight that is negative or not finite
    becomes NaN, and the loss with it.
    """
    if weight_T.device == device:
        weight_N = weight_T.float()
        kept_N = torch.arange(len(weight_N), device=device)
    else:
        found_N = weight_T.nonzero()[:, 0]
        kept_N, weight_N = sent(found_N, device), sent(weight_T[found_N].float(), device)
    return kept_N, torch.where(weight_N.isfinite() & (weight_N >= 0), weight_N, torch.nan)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on another device; the host does not wait for a copy on a GPU."""
    if x.device == device:
        return x
    return (x.pin_memory() if device.type == "cuda" and not x.is_cuda else x).to(device, non_blocking=True)


def kept_rows(x_TD: Tensor, plan: Plan, part: slice) -> Tensor:
    """A copy of the kept rows of hidden states, zeros where the weight is 0."""
    return x_TD[plan.kept_N[part]].masked_fill_((plan.weight_N[part] == 0)[:, None], 0.0)


def chunk_and_group(
    vocab: int, logits: torch.dtype, gradient: torch.dtype, chunk_tokens: int | None
) -> tuple[int, int]:
    """Positions of a chunk and of a group. A caller's own chunk is a group too, so that it bounds the memory."""
    if chunk_tokens is not None:
        return chunk_tokens, chunk_tokens
    chunk = max(CHUNK_BYTES // (logits.itemsize * vocab), 1)
    if chunk > TILE_ROWS:
        chunk -= chunk % TILE_ROWS
    return chunk, chunk * max(GROUP_BYTES // (gradient.itemsize * vocab * chunk), 1)


def aligned_rows(num_rows: int, vocab: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """An empty [num_rows, vocab] whose rows start at aligned addresses."""
    width = -(-vocab // ALIGNMENT) * ALIGNMENT
    return torch.empty(num_rows, width, dtype=dtype, device=device)[:, :vocab]


@functools.cache
def _has_float32_products() -> bool:
    """Whether this torch multiplies bfloat16 into float32; 2.8 and later do on NVIDIA's GPUs."""
    one = torch.ones(16, 16, dtype=torch.bfloat16, device="cuda")
    sum_ = torch.zeros(16, 16, device="cuda")
    try:
        torch.mm(one, one, out_dtype=torch.float32, out=sum_)
        torch.addmm(sum_, one, one, out_dtype=torch.float32, out=sum_)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        log.warning("bfloat16 products with float32 output do not work here (%s); they are rounded first", error)
        return False
    return True


def product(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    """out = a · b, summed in float32 and rounded once, to the dtype of ``out``."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    elif not a.is_cuda:
        torch.mm(a.float(), b.float(), out=out)
    elif _has_float32_products():
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(a @ b)


def add_product(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    """out += a · b in float32, without a temporary of the size of ``out``."""
    if out.dtype == a.dtype:
        torch.addmm(out, a, b, out=out)
    elif not a.is_cuda:
        torch.addmm(out, a.float(), b.float(), out=out)
    elif _has_float32_products():
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    else:
        out += a @ b


def scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient · factor in another dtype, in one pass."""
    if gradient.dtype == dtype:
        return gradient.mul_(factor)
    if gradient.is_cuda and fused.has_triton():  # torch's own way with two dtypes reaches a third of the bandwidth
        import opd.losses.kernels as kernels

        return kernels.scaled(gradient, factor, dtype)
    return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))


def compare(logits_NV: Tensor, rows_loss: RowLoss, loss_N: Tensor, scale_N: Tensor, grad_NV: Tensor | None) -> None:
    """Fill in the losses of a chunk and, if wanted, their gradient times scale; 0 where the scale is 0."""
    for rows in slices(len(logits_NV), max(BLOCK_BYTES // (4 * logits_NV.shape[1]), 1)):
        log_p_BV = logits_NV[rows].log_softmax(-1, dtype=torch.float32)
        p_BV = log_p_BV.exp()
        loss_N[rows], make_slope = rows_loss(rows, log_p_BV, p_BV)
        if grad_NV is not None:
            slope_BV, scale_B1 = make_slope(), scale_N[rows, None]
            slope_BV.addcmul_(p_BV, slope_BV.sum(-1, keepdim=True), value=-1).mul_(scale_B1)
            grad_NV[rows] = slope_BV.masked_fill_(scale_B1 == 0, 0.0)


class GroupedGradients:
    """Gradients of hidden states and head, as far as they are wanted; the head's is summed in float32.

    The head's gradient of a single group is one product, which sums in float32 and is rounded once.
    """

    def __init__(self, hidden_TD: Tensor, head_VD: Tensor, plan: Plan, wants: tuple[bool, ...]) -> None:
        self.plan = plan
        self.hidden_TD = hidden_TD
        self.head_VD = head_VD[: plan.vocab]
        num_kept = len(plan.kept_N)
        self.hidden = hidden_TD.new_empty(num_kept, hidden_TD.shape[1]) if wants[0] else None
        sum_dtype = torch.float32 if num_kept > plan.group else head_VD.dtype
        self.head = torch.empty_like(head_VD, dtype=sum_dtype) if wants[1] else None
        self.grad_GV = aligned_rows(min(plan.group, num_kept), plan.vocab, hidden_TD.device, hidden_TD.dtype)

    def room(self, chunk: slice) -> Tensor:
        """[N, V] of the head's dtype, to be filled with the gradient by the products' logits, weight included."""
        start = chunk.start % self.plan.group
        return self.grad_GV[start : start + chunk.stop - chunk.start]

    def add(self, chunk: slice) -> None:
        """Count the chunk's gradient in; it is multiplied when its group is full."""
        if chunk.stop % self.plan.group and chunk.stop < len(self.plan.kept_N):
            return
        group = slice((chunk.stop - 1) // self.plan.group * self.plan.group, chunk.stop)
        grad_GV = self.grad_GV[: group.stop - group.start]
        if self.hidden is not None:
            product(grad_GV, self.head_VD, out=self.hidden[group])
        if self.head is not None:
            # The first group writes instead of adding, which saves filling the buffer with zeros.
            add: Callable[..., None] = product if group.start == 0 else add_product
            add(grad_GV.T, kept_rows(self.hidden_TD, self.plan, group), out=self.head[: self.plan.vocab])

    def take(self, hidden_TD: Tensor, head_VD: Tensor) -> list[Tensor | None]:
        """Both gradients in the shapes of the inputs: zero at positions and rows of the head that do not count."""
        hidden, head = self.hidden, self.head
        del self.grad_GV
        if hidden is not None and len(hidden) < len(hidden_TD):
            hidden = torch.zeros_like(hidden_TD).index_copy_(0, self.plan.kept_N, hidden)
        if head is not None:
            head[self.plan.vocab if len(self.plan.kept_N) else 0 :].zero_()
        return [hidden, head]
