"""What compares two chunks of logits on a GPU: a Triton kernel, or a divergence's two functions compiled into one.

    block(logits_NV, teacher_NV, scale_N, grad_NV) -> loss_N, and the gradient times scale in grad_NV

forward_kl, reverse_kl and jsd have kernels. Any other divergence is compiled: log-softmax of both, density, slope and
gradient. Both need Triton; without it the eager walk of ``opd.losses.gpu`` runs, after one warning.

Suffixes: N positions of a chunk, V vocabulary.
"""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from opd.losses.divergences import DIVERGENCES, Divergence
from opd.losses.plan import Plan

log = logging.getLogger("opd.losses")

Block = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(logits_NV, teacher_NV before the temperature, scale_N, grad_NV or None) -> loss_N."""

WITH_KERNEL = ("forward_kl", "reverse_kl", "jsd")


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed and a kernel computes what torch does; a warning in the log says why not, once."""
    try:
        import opd.losses.kernels as kernels

        logits_NV, teacher_NV = torch.linspace(-4, 4, 20_000, device="cuda").sin().view(2, 2, 5_000).mul(4).unbind()
        scale_N, grad_NV = torch.ones(2, device="cuda"), torch.empty_like(logits_NV)
        kernels.divergence("jsd", logits_NV, teacher_NV, scale_N, grad_NV, inverse_temperature=1.0, beta=0.5)
        log_p_NV, log_q_NV = logits_NV.log_softmax(-1), teacher_NV.log_softmax(-1)
        slope_NV = DIVERGENCES["jsd"].slope(log_p_NV, log_q_NV, log_p_NV.exp(), log_q_NV.exp(), 0.5)
        right_NV = slope_NV - log_p_NV.exp() * slope_NV.sum(-1, keepdim=True)
        if not bool((grad_NV - right_NV).norm() <= 1e-4 * right_NV.norm()):
            raise RuntimeError("a kernel computed another gradient than torch")
    except Exception as error:  # a missing package, a missing C compiler, a driver that is too old
        log.warning("no Triton here (%s: %s): losses take several times as long", type(error).__name__, error)
        return False
    return True


def divergence_block(functions: Divergence, beta: float, plan: Plan) -> Block | None:
    """The fastest block for a divergence; None: compare by the eager walk."""
    if not plan.on_gpu or not has_triton():
        return None
    for kind in WITH_KERNEL:
        if functions is DIVERGENCES[kind]:
            import opd.losses.kernels as kernels

            return functools.partial(kernels.divergence, kind, inverse_temperature=1 / plan.temperature, beta=beta)
    return compiled_block(functions, beta, 1 / plan.temperature)


@functools.cache
def compiled_block(functions: Divergence, beta: float, inverse_temperature: float) -> Block:
    """A divergence's density, slope and gradient as one function, compiled at the first call."""

    def block(logits_NV: Tensor, teacher_NV: Tensor, scale_N: Tensor, grad_NV: Tensor | None) -> Tensor:
        log_p_NV = (logits_NV.float() * inverse_temperature).log_softmax(-1)
        log_q_NV = (teacher_NV.float() * inverse_temperature).log_softmax(-1)
        both = (log_p_NV, log_q_NV, log_p_NV.exp(), log_q_NV.exp(), beta)
        if grad_NV is not None:
            slope_NV = functions.slope(*both)
            slope_NV = slope_NV - both[2] * slope_NV.sum(-1, keepdim=True)
            grad_NV.copy_(slope_NV * scale_N[:, None])
        return functions.density(*both).sum(-1)

    # torch.compile counts its versions per code object, and stops after eight; each block gets its own.
    own = types.FunctionType(block.__code__.replace(), block.__globals__, "block", None, block.__closure__)
    compiled: Callable[..., Tensor] = torch.compile(own)

    def run(logits_NV: Tensor, teacher_NV: Tensor, scale_N: Tensor, grad_NV: Tensor | None) -> Tensor:
        for tensor in (logits_NV, teacher_NV, scale_N, grad_NV):
            if tensor is not None:
                _any_length(tensor)
        return compiled(logits_NV, teacher_NV, scale_N, grad_NV)

    return run


def _any_length(tensor_N: Any) -> None:
    """The last chunk is shorter than the others; it is not to be compiled anew."""
    torch._dynamo.maybe_mark_dynamic(tensor_N, 0)
