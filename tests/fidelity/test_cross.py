"""The distance across vocabularies against its formula in float64, one group at a time, with autograd's gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from opd.errors import OpdError
from opd.losses import token_logprobs
from opd.losses.cross import Groups, Matched, cross_divergence

BETA = 0.3


@dataclass(frozen=True)
class Case:
    """Hidden states of student and teacher for each group's tokens, first and later ones, and the tokens."""

    student: list[Tensor]
    student_head: Tensor
    student_tokens: list[list[int]]
    teacher: list[Tensor]
    teacher_head: Tensor
    teacher_tokens: list[list[int]]
    matched: Matched
    weight: Tensor
    by_text: Tensor


def make_case(seed: int, *, sizes: tuple[int, ...] = (1, 3, 2, 1, 1), common: int = 5, spread: float = 1.0) -> Case:
    """Student 11 tokens wide, teacher 17."""
    torch.manual_seed(seed)
    wide = {"student": (11, 6), "teacher": (17, 4)}
    lengths = {"student": sizes, "teacher": tuple(reversed(sizes))}
    hidden = {s: [torch.randn(n, wide[s][1]) * spread for n in lengths[s]] for s in wide}
    tokens = {s: [torch.randint(wide[s][0], (n,)).tolist() for n in lengths[s]] for s in wide}
    ids = [torch.randperm(wide[s][0])[:common] for s in wide]
    weight = torch.rand(len(sizes))
    weight[-1] = 0.0
    return Case(
        [x.requires_grad_() for x in hidden["student"]],
        torch.randn(*wide["student"]).requires_grad_(),
        tokens["student"],
        hidden["teacher"],
        torch.randn(*wide["teacher"]),
        tokens["teacher"],
        Matched(ids[0], ids[1], weight=0.7, rest=0.4),
        weight,
        torch.zeros(len(sizes), dtype=torch.bool),
    )


def measure(hidden: Tensor, head: Tensor, tokens: list[int], temperature: float) -> Tensor:
    """P at the first token times the probabilities of the later ones, float64 [V]."""
    p = (hidden.double() @ head.double().T / temperature).softmax(-1)
    whole = p[0]
    for k in range(1, len(tokens)):
        whole = whole * p[k, tokens[k]]
    return whole


def plogp(p: Tensor, m: Tensor) -> Tensor:
    """Σ p log(p / m) over what is not 0."""
    some = p > 0
    return (p[some] * (p[some] / m[some]).log()).sum()


def jsd(a: Tensor, b: Tensor) -> Tensor:
    m = BETA * b + (1 - BETA) * a
    return BETA * plogp(b, m) + (1 - BETA) * plogp(a, m)


def distance(p: Tensor, q: Tensor, own: tuple[int, int], matched: Matched, *, by_text: bool) -> Tensor:
    """One group's, written out."""
    if by_text:
        a, b = p[own[0]], q[own[1]]
        return (matched.weight + matched.rest) * jsd(torch.stack([a, 1 - a]), torch.stack([b, 1 - b]))
    others = [
        sorted((x[i] for i in range(len(x)) if i not in ids.tolist()), key=lambda x: float(x.detach()), reverse=True)
        for x, ids in ((p, matched.student_M), (q, matched.teacher_M))
    ]
    size = max(map(len, others))
    padded = [[*side, *[torch.zeros((), dtype=torch.float64)] * (size - len(side))] for side in others]
    apart = sum(abs(x - y) for x, y in zip(*padded, strict=True))
    return matched.weight * jsd(p[matched.student_M], q[matched.teacher_M]) + matched.rest * apart


def reference(case: Case, temperature: float) -> tuple[Tensor, ...]:
    total = torch.zeros((), dtype=torch.float64)
    for g, weight in enumerate(case.weight.double()):
        p = measure(case.student[g], case.student_head, case.student_tokens[g], temperature)
        q = measure(case.teacher[g], case.teacher_head, case.teacher_tokens[g], temperature)
        total = total + weight * distance(
            p, q, (case.student_tokens[g][0], case.teacher_tokens[g][0]), case.matched, by_text=bool(case.by_text[g])
        )
    leaves = (*case.student, case.student_head)
    return total.detach(), *torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)


def ours(case: Case, temperature: float = 1.0, chunk: int | None = None) -> tuple[Tensor, ...]:
    loss = value(case, temperature, chunk)
    leaves = (*case.student, case.student_head)
    return loss.detach(), *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)


def value(case: Case, temperature: float = 1.0, chunk: int | None = None) -> Tensor:
    later = [(x, t, g) for g, x in enumerate(case.student) for t in range(1, len(x))]
    rest = [
        float(token_logprobs(x[1:], case.teacher_head, torch.tensor(tokens[1:], dtype=torch.int64), temperature).sum())
        for x, tokens in zip(case.teacher, case.teacher_tokens, strict=True)
    ]
    return cross_divergence(
        Groups(torch.stack([x[0] for x in case.student]), case.student_head, firsts(case.student_tokens)),
        Groups(torch.stack([x[0] for x in case.teacher]), case.teacher_head, firsts(case.teacher_tokens)),
        later_hidden_RD=torch.stack([x[t] for x, t, _ in later]) if later else case.student[0][:0],
        later_token_R=torch.tensor([case.student_tokens[g][t] for _, t, g in later], dtype=torch.int64),
        later_group_R=torch.tensor([g for *_, g in later], dtype=torch.int64),
        teacher_rest_G=torch.tensor(rest),
        by_text_G=case.by_text,
        matched=case.matched,
        weight_G=case.weight,
        beta=BETA,
        temperature=temperature,
        chunk_groups=chunk,
    )


def firsts(tokens: list[list[int]]) -> Tensor:
    return torch.tensor([t[0] for t in tokens])


def assert_same(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x.double(), y.double(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize("common", [0, 5, 11])
@pytest.mark.parametrize("by_text", [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]])
def test_value_and_gradients_equal_the_formula(
    by_text: list[int], common: int, chunk: int | None, temperature: float
) -> None:
    case = make_case(common, common=common)
    case = replace(case, by_text=torch.tensor(by_text, dtype=torch.bool))
    assert_same(ours(case, temperature, chunk), reference(case, temperature))


@pytest.mark.parametrize("sizes", [(1, 1), (2,), (4, 1, 4)])
def test_groups_of_any_size(sizes: tuple[int, ...]) -> None:
    case = make_case(3, sizes=sizes)
    case = replace(case, weight=torch.ones(len(sizes)), by_text=torch.rand(len(sizes)) < 0.5)
    assert_same(ours(case), reference(case, 1.0))


@pytest.mark.parametrize("common", [0, 4, 11])
def test_it_vanishes_at_equality_and_is_never_negative(common: int) -> None:
    case = make_case(5, common=common)
    same = replace(
        case,
        teacher=[x.detach() for x in case.student],
        teacher_head=case.student_head.detach(),
        teacher_tokens=case.student_tokens,
        matched=replace(case.matched, teacher_M=case.matched.student_M),
        by_text=torch.tensor([False, True, False, True, False]),
    )
    loss, *gradients = ours(same)
    assert abs(float(loss)) < 1e-6
    if common == 11:  # the sorted distance has a kink there, like any absolute value
        assert all(float(g.abs().max()) < 1e-5 for g in gradients)
    assert all(ours(make_case(seed, common=common))[0] > 0 for seed in range(20))


@pytest.mark.parametrize("spread", [1e2, 1e4])
def test_extreme_logits_stay_finite(spread: float) -> None:
    case = make_case(7, spread=spread)
    case = replace(case, by_text=torch.tensor([True, False, True, False, True]))
    assert all(x.isfinite().all() for x in ours(case))


def test_a_position_of_no_weight_cannot_leak() -> None:
    case = make_case(8)
    last = torch.full_like(case.student[-1], torch.nan).requires_grad_()
    spoiled = replace(case, student=[*case.student[:-1], last])
    loss, *gradients = ours(spoiled)
    assert loss == ours(case)[0]
    assert all(g.isfinite().all() for g in gradients)


def test_without_gradients_it_is_the_same_number() -> None:
    case = make_case(9)
    wanted = ours(case)[0]
    with torch.no_grad():
        assert value(case) == wanted


def test_counts_that_do_not_fit_are_refused() -> None:
    case = make_case(10)
    with pytest.raises(OpdError, match="5 groups, the teacher 5 with 5 rests, and there are 4 weights"):
        value(replace(case, weight=case.weight[:4]))
