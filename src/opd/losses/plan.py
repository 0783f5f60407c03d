"""How one loss is computed: which positions, in which chunks, and what compares their rows.

Suffixes: N positions of a chunk, B rows of a block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LogitsDtype = Literal["float32", "bfloat16"]
"""float32: the products' sums as they are. bfloat16: rounded, which saves time and costs accuracy."""

RowLoss = Callable[[slice, Tensor, Tensor], tuple[Tensor, Callable[[], Tensor]]]
"""(rows within the chunk, log_p_BV, p_BV) -> (loss_B, a function that makes slope_BV when it is wanted)."""
Target = Callable[[slice], RowLoss]
"""A chunk of the kept positions -> what compares its rows; called once a chunk."""
Fused = Callable[[slice, Tensor, Tensor, Tensor | None], Tensor]
"""(chunk, logits_NV before the temperature, scale_N, grad_NV or None) -> loss_N; writes the gradient times scale."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one loss is computed.

    Attributes:
        kept_N: int64, positions whose weight is not 0. The others are never read.
        weight_N: float32, weights of the kept positions.
        vocab: rows of the head that count.
        temperature: divides the logits.
        chunk: positions whose logits exist at one time.
        on_gpu: the walk is that of ``opd.losses.gpu``.
        group: on a GPU, positions whose gradients one product takes; a multiple of ``chunk``.
        logits: on a GPU, the dtype of the logits; None for the head's.
    """

    kept_N: Tensor
    weight_N: Tensor
    vocab: int
    temperature: float
    chunk: int
    on_gpu: bool = False
    group: int = 1
    logits: torch.dtype | None = None

    def chunks(self) -> Iterator[slice]:
        """Slices of the kept positions."""
        return slices(len(self.kept_N), self.chunk)


def slices(length: int, size: int) -> Iterator[slice]:
    """0 to ``length`` in parts of ``size``."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
