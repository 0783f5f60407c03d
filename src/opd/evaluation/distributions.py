"""Next-token distributions from hidden states, in chunks that bound memory.

Suffixes: T positions, N positions of a chunk, V vocabulary, D hidden units.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_BYTES = 2**26
"""Size of one float32 [N, V] tensor."""


def logprob_chunks(
    *models: tuple[Tensor, Tensor], vocab_size: int | None = None
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Yield log softmax(hidden · headᵀ) of one or more models, chunk by chunk.

    Args:
        models: per model the hidden states [T, D] and the output head [V, D]; D may differ.
        vocab_size: first rows of each head to use; None for as many as all heads have.

    Yields:
        Row indices, int64 [N], and for each model the log-probabilities, float32 [N, V], nats.
    """
    vocab = vocab_size or min(len(head_VD) for _, head_VD in models)
    heads = [head_VD.detach().to(hidden_TD)[:vocab] for hidden_TD, head_VD in models]
    hidden_TD = models[0][0]
    size = max(CHUNK_BYTES // (4 * vocab), 1)
    for rows in torch.arange(len(hidden_TD), device=hidden_TD.device).split(size):
        chunk = zip(models, heads, strict=True)
        yield rows, tuple((h_TD[rows] @ head_VD.T).log_softmax(-1, dtype=torch.float32) for (h_TD, _), head_VD in chunk)
