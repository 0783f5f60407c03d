"""The optimizer against torch's own, its schedule, and updates that are not finite."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from opd.config.read import read
from opd.errors import ConfigError
from opd.training.moments import BYTES, BFloat16AdamW, StateDtype
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


def test_its_settings_are_those_of_adamw_behind_a_clipped_gradient() -> None:
    ours, theirs = model(), model()
    optimizer = Optimizer(ours, lr=0.1, steps=3, betas=(0.7, 0.8), weight_decay=0.5, grad_clip=0.3)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.1, betas=(0.7, 0.8), weight_decay=0.5)
    for step, scale in enumerate((1.0, 0.01, 2.0)):
        norm = one_step(optimizer, ours, step, scale)
        (scale * theirs(torch.tensor([[1.0, 2.0, 3.0]])).square().sum()).backward()
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)))
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


@pytest.mark.parametrize("loss", [math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_is_not_applied_even_if_the_gradient_is_finite(loss: float) -> None:
    module = model()
    optimizer = Optimizer(module, lr=0.1, steps=3)
    before = module.weight.clone()
    module.weight.grad = torch.ones(2, 3)
    assert optimizer.step(0, loss) is None
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t | {"other.exp_avg": torch.zeros(2, 3)}, "the optimizer has no 'other.exp_avg'"),
        (lambda t: {k: v for k, v in t.items() if k != "weight.step"}, "the optimizer's 'weight.step' is missing"),
        (lambda t: t | {"weight.exp_avg": torch.zeros(3, 2)}, "the shape of the optimizer's 'weight.exp_avg' differs"),
        (lambda t: t | {"weight.step": torch.zeros(2)}, "the shape of the optimizer's 'weight.step' differs"),
    ],
)
def test_a_state_of_another_optimizer_is_refused(change: Any, words: str) -> None:
    module = model()
    optimizer = Optimizer(module, lr=0.1, steps=3)
    one_step(optimizer, module, 0)
    with pytest.raises(ValueError, match=words):
        optimizer.load(change(optimizer.tensors()))


def test_finite_detects_weights_that_are_not() -> None:
    module = model()
    optimizer = Optimizer(module, lr=0.1, steps=3)
    assert optimizer.finite()
    with torch.no_grad():
        module.bias[0] = math.nan
    assert not optimizer.finite()


def trained(state: StateDtype, steps: int, *, resumed_after: int | None = None) -> list[torch.Tensor]:
    """A layer of 80 × 80 after some steps on gradients that repeat."""
    torch.manual_seed(0)
    module = torch.nn.Linear(80, 80)
    optimizer = Optimizer(module, lr=1e-2, steps=steps, state=state)
    for step in range(steps):
        if step == resumed_after:
            saved = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
            optimizer = Optimizer(module, lr=1e-2, steps=steps, state=state)
            optimizer.load(saved)
        torch.manual_seed(step)
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-3 + 1e-3
        optimizer.step(step, 0.0)
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize(("state", "bound"), [("bfloat16", 2e-2), ("8bit", 1e-1)])
def test_moments_in_fewer_bits_train_almost_as_float32_does(state: StateDtype, bound: float) -> None:
    torch.manual_seed(0)
    start = [p.detach().clone() for p in torch.nn.Linear(80, 80).parameters()]
    for first, few, full in zip(start, trained(state, 60), trained("float32", 60), strict=True):
        assert 0 < float((few - full).norm() / (full - first).norm()) < bound


@pytest.mark.parametrize("state", ["float32", "bfloat16", "8bit"])
def test_every_state_goes_on_bit_for_bit(state: StateDtype) -> None:
    for whole, resumed in zip(trained(state, 6), trained(state, 6, resumed_after=3), strict=True):
        assert torch.equal(whole, resumed)


def test_the_average_of_squares_in_bfloat16_does_not_stand_still() -> None:
    parameter = torch.nn.Parameter(torch.zeros(10_000))
    adamw = BFloat16AdamW([parameter], lr=0.0, betas=(0.9, 0.999))
    for _ in range(300):
        parameter.grad = torch.ones_like(parameter)
        adamw.step()
    average = adamw.state[parameter]["exp_avg_sq"].float().mean()
    assert float(average) == pytest.approx(1 - 0.999**300, rel=1e-2)


def test_state_takes_the_memory_that_is_said() -> None:
    for state, size in BYTES.items():
        module = torch.nn.Linear(256, 256, bias=False)
        optimizer = Optimizer(module, lr=0.1, steps=1, state=state)
        module.weight.grad = torch.ones_like(module.weight)
        optimizer.step(0, 0.0)
        found = [t for name, t in optimizer.tensors().items() if "qmap" not in name and not name.endswith("step")]
        assert sum(t.nbytes for t in found) == size * module.weight.numel()


def test_8bit_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opd.config.optimizer.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"optimizer\.state: 8bit needs the package bitsandbytes\. Fix: pip install"):
        read("hint", {"optimizer.state": "8bit"})
