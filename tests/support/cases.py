"""Random arguments of the losses, the divergences' formulas in float64, and the comparison of the two.

Suffixes: T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from opd.losses import linear_divergence

Formula = Callable[[Tensor, Tensor, float], Tensor]
"""(p, q, beta), float64 [T, V] -> float64 [T]."""


def kl(a: Tensor, b: Tensor) -> Tensor:
    """Σ a log(a / b) over the vocabulary, with 0 log 0 = 0."""
    return torch.where(a > 0, a * (a.clamp_min(1e-300) / b.clamp_min(1e-300)).log(), 0.0).sum(-1)


def mixture(p: Tensor, q: Tensor, beta: float) -> Tensor:
    return beta * q + (1 - beta) * p


FORMULAS: dict[str, Formula] = {
    "forward_kl": lambda p, q, beta: kl(q, p),
    "reverse_kl": lambda p, q, beta: kl(p, q),
    "jsd": lambda p, q, beta: beta * kl(q, mixture(p, q, beta)) + (1 - beta) * kl(p, mixture(p, q, beta)),
    "skew_forward": lambda p, q, beta: kl(q, mixture(p, q, beta)),
    "skew_reverse": lambda p, q, beta: kl(p, mixture(q, p, beta)),
    "alpha": lambda p, q, beta: (1 - (q**beta * p ** (1 - beta)).sum(-1)) / (beta * (1 - beta)),
    "total_variation": lambda p, q, beta: (p - q).abs().sum(-1) / 2,
}


@dataclass
class Case:
    """Arguments of one call, gradients on for the student's."""

    student_hidden: Tensor
    student_head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    weight: Tensor

    def double(self) -> Case:
        return Case(
            self.student_hidden.detach().double().requires_grad_(),
            self.student_head.detach().double().requires_grad_(),
            self.teacher_hidden.double(),
            self.teacher_head.double(),
            self.weight.double(),
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.student_hidden, self.student_head, self.teacher_hidden, self.teacher_head


def make_case(
    seed: int = 0, *, tokens: int = 7, vocab: int = 33, width: int = 8, teacher_width: int = 12, scale: float = 1.5
) -> Case:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=random) * scale

    weight = torch.rand(tokens, generator=random)
    weight[torch.rand(tokens, generator=random) < 0.3] = 0
    weight[1::5], weight[0] = 0, 0.5
    return Case(
        normal(tokens, width).requires_grad_(),
        normal(vocab, width, scale=scale / width**0.5).requires_grad_(),
        normal(tokens, teacher_width),
        normal(vocab, teacher_width, scale=scale / teacher_width**0.5),
        weight,
    )


def reference(
    case: Case, formula: Formula, *, beta: float = 0.5, temperature: float = 1.0, vocab: int | None = None
) -> tuple[Tensor, ...]:
    """Loss and both gradients in float64, from whole logits."""
    c = case.double()
    p = (c.student_hidden @ c.student_head[:vocab].T / temperature).softmax(-1)
    q = (c.teacher_hidden @ c.teacher_head[:vocab].T / temperature).softmax(-1)
    loss = (c.weight * formula(p, q, beta)).sum()
    return loss.detach(), *torch.autograd.grad(loss, (c.student_hidden, c.student_head))


def ours(case: Case, **options: object) -> tuple[Tensor, ...]:
    """Loss and both gradients of ``linear_divergence``."""
    loss = linear_divergence(*case.tensors(), weight=case.weight, **options)  # type: ignore[arg-type]
    return loss.detach(), *torch.autograd.grad(loss, (case.student_hidden, case.student_head))


def assert_same(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], *, rtol: float = 2e-5, atol: float = 2e-6) -> None:
    for value, right in zip(got, wanted, strict=True):
        assert value.isfinite().all()
        torch.testing.assert_close(
            value.double(), right.double(), rtol=rtol, atol=atol * max(1, float(right.abs().max()))
        )
