"""The optimizer against torch's own, its schedule, and updates that are not finite."""

import math

import pytest
import torch
from torch import nn

from opd.training.optimizer import Optimizer


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def one_step(optimizer: Optimizer, module: nn.Linear, step: int, scale: float = 1.0) -> float | None:
    loss = scale * module(torch.tensor([[1.0, 2.0, 3.0]])).square().sum()
    loss.backward()
    return optimizer.step(step, loss.item())


def test_equals_adamw() -> None:
    ours, theirs = model(), model()
    optimizer = Optimizer(ours, lr=0.1, steps=3, grad_clip=1e9)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.0)
    for step in range(3):
        one_step(optimizer, ours, step)
        theirs(torch.tensor([[1.0, 2.0, 3.0]])).square().sum().backward()
        reference.step()
        reference.zero_grad()
    assert torch.equal(ours.weight, theirs.weight)


def test_schedule() -> None:
    cosine = Optimizer(model(), lr=1.0, steps=10, warmup=2, schedule="cosine")
    assert [cosine.lr(s) for s in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert cosine.lr(6) == pytest.approx(0.5)
    assert cosine.lr(10) == pytest.approx(0.0)
    assert Optimizer(model(), lr=1.0, steps=4, schedule="linear").lr(3) == 0.25
    assert Optimizer(model(), lr=1.0, steps=4).lr(3) == 1.0


@pytest.mark.parametrize("scale", [math.inf, math.nan])
def test_a_loss_and_gradient_that_are_not_finite_are_not_applied(scale: float) -> None:
    module = model()
    optimizer = Optimizer(module, lr=0.1, steps=3)
    before = module.weight.clone()
    assert one_step(optimizer, module, 0, scale) is None
    assert torch.equal(module.weight, before)
    assert module.weight.grad is None
    assert one_step(optimizer, module, 1) is not None


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_is_not_applied_even_if_the_loss_is_finite(value: float) -> None:
    module = model()
    optimizer = Optimizer(module, lr=0.1, steps=3)
    before = module.weight.clone()
    module.weight.grad = torch.tensor([[value, 1.0, 1.0], [1.0, 1.0, 1.0]])
    assert optimizer.step(0, 1.0) is None
    assert torch.equal(module.weight, before)
    assert module.weight.grad is None


def test_state_survives_a_round_trip_bit_for_bit() -> None:
    ours, other = model(), model()
    optimizer, restored = Optimizer(ours, lr=0.1, steps=9), Optimizer(other, lr=0.1, steps=9)
    for step in range(4):
        one_step(optimizer, ours, step)
    saved = {k: v.clone() for k, v in optimizer.tensors().items()}
    with torch.no_grad():
        for a, b in zip(other.parameters(), ours.parameters(), strict=True):
            a.copy_(b)
    restored.load(saved)
    for step in range(4, 9):
        one_step(optimizer, ours, step)
        one_step(restored, other, step)
    assert torch.equal(ours.weight, other.weight)


def test_a_scaled_step_is_that_of_a_scaled_learning_rate() -> None:
    ours, other = model(), model()
    for module, optimizer, scale in (
        (ours, Optimizer(ours, lr=0.1, steps=3), 0.5),
        (other, Optimizer(other, lr=0.05, steps=3), 1.0),
    ):
        module(torch.ones(1, 3)).square().sum().backward()
        optimizer.step(0, 1.0, scale=scale)
    assert torch.equal(ours.weight, other.weight)


def test_an_empty_state_replaces_one_that_has_moments() -> None:
    module = model()
    optimizer = Optimizer(module, lr=0.1, steps=3)
    one_step(optimizer, module, 0)
    optimizer.load({})
    assert optimizer.tensors() == {}


def test_finite_detects_weights_that_are_not() -> None:
    module = model()
    optimizer = Optimizer(module, lr=0.1, steps=3)
    assert optimizer.finite()
    with torch.no_grad():
        module.bias[0] = math.nan
    assert not optimizer.finite()
