"""A divergence to a teacher's stored top k, without the teacher.

Suffixes: T positions, N kept positions of a chunk, B rows of a block, V vocabulary, K stored tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from opd.errors import OpdError
from opd.losses.chunked import chunked_loss, make_plan
from opd.losses.divergences import check_divergence
from opd.losses.full_vocab import Distribution, target_of
from opd.losses.plan import LogitsDtype
from opd.losses.support import Support


def stored_divergence(
    student_hidden: Tensor,
    student_head: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    rest_logprob: Tensor,
    *,
    weight: Tensor,
    support: Support,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    per_token: Tensor | None = None,
    logits: LogitsDtype = "float32",
) -> Tensor:
    """``linear_divergence`` on a teacher's k likeliest tokens, from stored log-probabilities: Σ_t w_t D(p_t, q_t).

    Mass of the other tokens counts as the support says, and needs no more than its sum.

    Args:
        ids: int64 [T, K] the teacher's likeliest tokens.
        logprobs: float32 [T, K], nats, detached; at the temperature of the loss.
        rest_logprob: float32 [T], nats; logarithm of the mass of all other tokens, −∞ for none.
        support: with ``whose="teacher"`` and k = K. The other arguments are those of ``linear_divergence``.

    Returns:
        float32 [], nats.

    Raises:
        ConfigError, OpdError: as ``linear_divergence``; the support needs tokens that are not stored.

    Source: tests/fidelity/test_stored.py, which holds it against ``linear_divergence``.
    """
    if support.whose != "teacher" or support.k != ids.shape[1]:
        raise OpdError(f"{ids.shape[1]} tokens of the teacher are stored, and the loss asks for {support}")
    vocab = len(student_head)
    plan = make_plan(weight, vocab, temperature, chunk_tokens, hidden_TD=student_hidden, logits=logits)
    # The others' mass is spread evenly: of each, support and divergence read the sum alone.
    rest_T = rest_logprob - torch.tensor(float(max(vocab - support.k, 1))).log()

    def distribution(chunk: slice) -> Distribution:
        kept_N = plan.kept_N[chunk]
        ids_NK, logprobs_NK, rest_N = ids[kept_N], logprobs[kept_N], rest_T[kept_N]

        def spread(rows: slice) -> tuple[Tensor, Tensor]:
            log_q_BV = rest_N[rows, None].repeat(1, vocab).scatter_(1, ids_NK[rows], logprobs_NK[rows])
            return log_q_BV, log_q_BV.exp()

        return spread

    target = target_of(check_divergence(divergence, beta=beta), distribution, beta, support)
    return chunked_loss(student_hidden, student_head, plan, target, per_token)
