"""Divergences on a top-k support against formulas in float64: values, gradients, and the trap of the truncated sum.

The references gather the support with plain indexing and leave the gradients to autograd. Suffixes: T positions, V
vocabulary.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opd.errors import ConfigError
from opd.losses import Support, linear_divergence
from support.cases import FORMULAS, Case, assert_same, make_case

WHOSE = ["teacher", "student", "union", "intersection"]
REST = ["tail", "renormalise", "correct"]
PAIRS = [(name, rest) for name in ("forward_kl", "reverse_kl") for rest in REST]
PAIRS += [(name, rest) for name in ("jsd", "skew_reverse") for rest in ("tail", "renormalise")]


def support_of(p: Tensor, q: Tensor, k: int, whose: str) -> list[int]:
    student, teacher = (set(x.argsort(descending=True)[:k].tolist()) for x in (p, q))
    chosen = {"student": student, "teacher": teacher, "union": student | teacher, "intersection": student & teacher}
    return sorted(chosen[whose])


def reference(case: Case, name: str, support: Support, temperature: float = 1.0) -> tuple[Tensor, ...]:
    """Loss and both gradients, one position at a time."""
    c = case.double()
    p_TV = (c.student_hidden @ c.student_head.T / temperature).softmax(-1)
    q_TV = (c.teacher_hidden @ c.teacher_head.T / temperature).softmax(-1)
    total = 0 * (c.student_hidden.sum() + c.student_head.sum())  # of no position, where nothing is shared
    for p, q, w in zip(p_TV, q_TV, c.weight, strict=True):
        ids = support_of(p.detach(), q, support.k, support.whose)
        if not ids and support.rest != "tail":
            continue
        pk, qk = p[ids], q[ids]
        if support.rest == "tail":
            pk, qk = torch.cat([pk, 1 - pk.sum()[None]]), torch.cat([qk, 1 - qk.sum()[None]])
        if support.rest == "renormalise":
            pk, qk = pk / pk.sum(), qk / qk.sum()
        value = FORMULAS[name](pk[None], qk[None], 0.5)[0]
        if support.rest == "correct":
            value = value + (qk.sum() - pk.sum()) * (1 if name == "reverse_kl" else -1)
        total = total + w * value
    return total.detach(), *torch.autograd.grad(total, (c.student_hidden, c.student_head))


def ours(case: Case, name: str, support: Support | None, **options: float) -> tuple[Tensor, ...]:
    loss = linear_divergence(*case.tensors(), weight=case.weight, divergence=name, support=support, **options)  # type: ignore[arg-type]
    return loss.detach(), *torch.autograd.grad(loss, (case.student_hidden, case.student_head))


@pytest.mark.parametrize(("name", "rest"), PAIRS)
@pytest.mark.parametrize("whose", WHOSE)
@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(1, 9),
    vocab=st.integers(3, 50),
    k=st.integers(1, 12),
    scale=st.sampled_from([0.5, 1.5, 3.0]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    chunk_tokens=st.sampled_from([1, 2, 100]),
)
def test_value_and_gradients_equal_the_formula(
    name: str,
    whose: str,
    rest: str,
    seed: int,
    tokens: int,
    vocab: int,
    k: int,
    scale: float,
    temperature: float,
    chunk_tokens: int,
) -> None:
    support = Support(min(k, vocab - 1), whose, rest)  # type: ignore[arg-type]
    case = make_case(seed, tokens=tokens, vocab=vocab, scale=scale)
    wanted = reference(case, name, support, temperature)
    assert_same(ours(case, name, support, temperature=temperature, chunk_tokens=chunk_tokens), wanted)


@pytest.mark.parametrize("rest", REST)
def test_a_support_of_everything_is_the_whole_vocabulary(rest: str) -> None:
    case = make_case(4)
    whole = ours(case, "reverse_kl", None)
    assert_same(ours(case, "reverse_kl", Support(1000, "teacher", rest)), whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("rest", REST)
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_logits_stay_finite(rest: str, name: str, size: float) -> None:
    student = (torch.tensor([[1.0, -1, 0, -1], [1, -1, -1, 0], [-1, -1, 1, 1]]) * size).requires_grad_()
    teacher = torch.tensor([[1.0, -1, 0, -1], [-1, 1, -1, 0], [1, 1, -1, -1]]) * size
    case = Case(student, torch.eye(4).requires_grad_(), teacher, torch.eye(4), torch.ones(3))
    for whose in WHOSE:
        assert all(value.isfinite().all() for value in ours(case, name, Support(2, whose, rest)))  # type: ignore[arg-type]


def test_the_truncated_sum_goes_negative_and_ours_do_not() -> None:
    """The trap: Σ over the teacher's top k of p log(p/q) alone pays the student for leaving the support."""
    student, teacher = torch.tensor([[0.05, 0.05, 0.9]]).log(), torch.tensor([[0.5, 0.45, 0.05]]).log()
    truncated = (student[:, :2].exp() * (student[:, :2] - teacher[:, :2])).sum()
    assert truncated < -0.2
    case = Case(student.requires_grad_(), torch.eye(3).requires_grad_(), teacher, torch.eye(3), torch.ones(1))
    for rest in REST:
        value, gradient, _ = ours(case, "reverse_kl", Support(2, "teacher", rest))  # type: ignore[arg-type]
        assert value >= 0
        if rest != "renormalise":
            assert gradient[0, 2] > 0  # a descent step takes mass off the token outside


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 token"):
        Support(0)
    with pytest.raises(ConfigError, match=r"rest='truncate' is unknown. Fix: use tail, renormalise, correct"):
        Support(4, "teacher", "truncate")  # type: ignore[arg-type]
