"""A divergence from a teacher's stored top k equals the one that reads the teacher's whole distribution.

Suffixes: T positions, V vocabulary, D hidden units, K stored tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from opd.errors import OpdError
from opd.losses import Support, linear_divergence, stored_divergence
from opd.losses.support import Rest
from support.cases import Case, make_case


def stored(case: Case, k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's likeliest tokens, their log-probabilities and that of all others, in float64."""
    logits = case.teacher_hidden.double() @ case.teacher_head.double().T / temperature
    log_q_TV = logits.log_softmax(-1)
    best = log_q_TV.topk(k)
    rest_T = log_q_TV.scatter(1, best.indices, -torch.inf).logsumexp(-1).clamp_min(-1e4)
    return best.indices, best.values.float(), rest_T.float()


@pytest.mark.parametrize("k", [1, 3, 12])
@pytest.mark.parametrize("rest", ["tail", "renormalise", "correct"])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_it_equals_the_divergence_to_the_whole_teacher(k: int, rest: Rest, divergence: str, temperature: float) -> None:
    case = make_case(3, tokens=7, vocab=12)
    support = Support(k, "teacher", rest)
    found = []
    for whole in (True, False):
        hidden, head = (x.detach().clone().requires_grad_() for x in (case.student_hidden, case.student_head))
        per_token = torch.zeros(len(hidden))
        how: dict[str, Any] = {"divergence": divergence, "temperature": temperature, "per_token": per_token}
        how |= {"weight": case.weight, "support": support}
        if whole:
            loss = linear_divergence(hidden, head, case.teacher_hidden, case.teacher_head, **how)
        else:
            loss = stored_divergence(hidden, head, *stored(case, k, temperature), **how)
        loss.backward()
        found.append((loss.detach(), hidden.grad, head.grad, per_token))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)


def test_tokens_that_are_not_stored_are_refused() -> None:
    case = make_case(3, tokens=2, vocab=12)
    top = stored(case, 3, 1.0)
    for support in (Support(4), Support(3, "student")):
        with pytest.raises(OpdError, match="3 tokens of the teacher are stored, and the loss asks for"):
            stored_divergence(case.student_hidden, case.student_head, *top, weight=case.weight, support=support)
