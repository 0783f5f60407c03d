"""Divergences to a mixture of teachers against their definition, in float64, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opd.errors import OpdError
from opd.losses import linear_divergence, linear_mixture_divergence
from opd.losses.support import Support

V, D = 13, 5


def made(seed: int, teachers: int, positions: int = 7) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]], Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    each = [(normal(positions, D + k), normal(V, D + k)) for k in range(teachers)]
    share = torch.rand(positions, teachers, generator=generator) + 0.05
    return normal(positions, D), normal(V, D), each, share / share.sum(-1, keepdim=True)


def by_definition(
    hidden: Tensor,
    head: Tensor,
    teachers: list[tuple[Tensor, Tensor]],
    share: Tensor,
    weight: Tensor,
    temperature: float,
    *,
    geometric: bool,
    reverse: bool,
) -> Tensor:
    p = ((hidden @ head.T) / temperature).softmax(-1)
    each = torch.stack([((h.double() @ w.double().T) / temperature).softmax(-1) for h, w in teachers], -1)
    parts = share.double()[:, None, :]
    q = (each**parts).prod(-1) if geometric else (parts * each).sum(-1)
    q = q / q.sum(-1, keepdim=True)
    first, second = (p, q) if reverse else (q, p)
    return (weight.double() * (first * (first / second).log()).sum(-1)).sum()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    teachers=st.integers(1, 4),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    geometric=st.booleans(),
    reverse=st.booleans(),
    chunk=st.sampled_from([1, 3, None]),
)
def test_value_and_gradients(
    seed: int, teachers: int, temperature: float, geometric: bool, reverse: bool, chunk: int | None
) -> None:
    hidden, head, each, share = made(seed, teachers)
    weight = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 0.0, 0.25])
    ours = [t.clone().requires_grad_() for t in (hidden, head)]
    exact = [t.double().requires_grad_() for t in (hidden, head)]
    loss = linear_mixture_divergence(
        ours[0],
        ours[1],
        each,
        share,
        geometric=geometric,
        weight=weight,
        divergence="reverse_kl" if reverse else "forward_kl",
        temperature=temperature,
        chunk_tokens=chunk,
    )
    wanted = by_definition(exact[0], exact[1], each, share, weight, temperature, geometric=geometric, reverse=reverse)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-5)
    loss.backward()
    wanted.backward()
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("geometric", [True, False])
def test_one_teacher_and_equal_teachers_are_no_mixture(geometric: bool) -> None:
    hidden, head, each, _ = made(3, 1)
    weight = torch.ones(7)
    support = Support(4, whose="teacher", rest="tail")
    alone = linear_divergence(hidden, head, *each[0], weight=weight, support=support)
    for number in (1, 3):
        share = torch.full((7, number), 1 / number)
        mixed = linear_mixture_divergence(
            hidden, head, each * number, share, geometric=geometric, weight=weight, support=support
        )
        torch.testing.assert_close(mixed, alone, rtol=1e-5, atol=1e-6)


def test_the_two_means_differ_where_teachers_contradict_each_other() -> None:
    """A token that one teacher excludes is half likely in the arithmetic mean and gone from the geometric."""
    head = torch.eye(3) * 20
    likes = [torch.tensor([[1.0, 0.9, 0.0]]), torch.tensor([[0.0, 0.9, 1.0]])]
    teachers = [(hidden, head) for hidden in likes]
    share, student = torch.full((1, 2), 0.5), torch.zeros(1, 3)
    found = {
        geometric: linear_mixture_divergence(
            student, head, teachers, share, geometric=geometric, weight=torch.ones(1), divergence="reverse_kl"
        )
        for geometric in (True, False)
    }
    exact = {
        g: by_definition(
            student.double(), head.double(), teachers, share, torch.ones(1), 1.0, geometric=g, reverse=True
        )
        for g in (True, False)
    }
    for geometric in (True, False):
        assert float(found[geometric]) == pytest.approx(float(exact[geometric]), rel=1e-4)
    assert found[True] > found[False] + 1


def test_shares_have_to_be_above_zero() -> None:
    hidden, head, each, share = made(0, 2)
    share[2, 0] = 0.0
    with pytest.raises(OpdError, match=r"share has to be above 0 and of shape \(7, 2\)"):
        linear_mixture_divergence(hidden, head, each, share, geometric=False, weight=torch.ones(7))
