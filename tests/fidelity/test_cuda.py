"""The losses on a card, against float64 on the card, without one synchronisation. Skipped where there is no CUDA.

Suffixes: T positions, V vocabulary, D hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from opd.losses import fused, linear_cross_entropy, linear_divergence
from support.cases import FORMULAS, Case, reference

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]


def make_case(dtype: torch.dtype, *, tokens: int = 700, vocab: int = 5003, width: int = 64) -> Case:
    """More positions than a chunk takes, a vocabulary that no tile divides, and NaN where the weight is 0."""
    random = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=random, device="cuda") * scale).to(dtype)

    weight = torch.rand(tokens, generator=random, device="cuda")
    weight[torch.rand(tokens, generator=random, device="cuda") < 0.3] = 0
    scale = 2 / width**0.5
    return Case(
        normal(tokens, width).requires_grad_(),
        normal(vocab, width, scale=scale).requires_grad_(),
        normal(tokens, width),
        normal(vocab, width, scale=scale),
        weight,
    )


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_near(case: Case, loss_of: Callable[[], Tensor], right: tuple[Tensor, ...], bound: float) -> None:
    """Losses and gradients are within a relative norm, and the second call does not wait for the card."""
    loss_of()
    with no_synchronisation():
        loss = loss_of()
        got = (loss.detach(), *torch.autograd.grad(loss, (case.student_hidden, case.student_head)))
    for value, wanted in zip(got, right, strict=True):
        assert float((value.double() - wanted).norm() / wanted.norm()) < bound
    assert not got[1][case.weight == 0].any()


@pytest.mark.parametrize("route", ["kernel", "compiled", "eager"])
@pytest.mark.parametrize("name", sorted(FORMULAS))
@pytest.mark.parametrize(
    ("dtype", "options", "bound"),
    [
        # Where p and q are equal to the last bit, total variation's slope is a matter of rounding.
        (torch.float32, {"temperature": 2.0}, 1e-4),
        (torch.bfloat16, {"temperature": 2.0}, 4e-3),
        (torch.bfloat16, {"temperature": 2.0, "logits": "bfloat16"}, 3e-2),
        (torch.bfloat16, {"temperature": 0.5, "vocab_size": 4990, "chunk_tokens": 100}, 4e-3),
        (torch.bfloat16, {"on_cpu": True}, 4e-3),
    ],
)
def test_divergences(
    monkeypatch: pytest.MonkeyPatch, route: str, name: str, dtype: torch.dtype, options: dict[str, object], bound: float
) -> None:
    if route == "eager":
        monkeypatch.setattr(fused, "has_triton", lambda: False)
    elif route == "compiled":
        monkeypatch.setattr(fused, "WITH_KERNEL", ())
    elif name not in fused.WITH_KERNEL:
        pytest.skip("it has no kernel")
    options = dict(options)
    on_cpu = options.pop("on_cpu", False)
    case = make_case(dtype)
    temperature, vocab = options.get("temperature", 1.0), options.get("vocab_size")
    right = reference(case, FORMULAS[name], beta=0.3, temperature=temperature, vocab=vocab)  # type: ignore[arg-type]
    with torch.no_grad():
        case.student_hidden[case.weight == 0] = math.nan
        case.teacher_hidden[case.weight == 0] = math.nan
    weight = case.weight.cpu() if on_cpu else case.weight

    def loss_of() -> Tensor:
        return linear_divergence(*case.tensors(), weight=weight, divergence=name, beta=0.3, **options)  # type: ignore[arg-type]

    assert_near(case, loss_of, right, bound)


def test_triton_is_there() -> None:
    assert fused.has_triton()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy(dtype: torch.dtype) -> None:
    case = make_case(dtype)
    token_T = torch.randint(5003, (700,), device="cuda")
    c = case.double()
    logits = c.student_hidden @ c.student_head.T / 2
    right = (F.cross_entropy(logits, token_T, reduction="none") * c.weight).sum()
    wanted = (right.detach(), *torch.autograd.grad(right, (c.student_hidden, c.student_head)))
    token_T[case.weight == 0] = -100

    def loss_of() -> Tensor:
        return linear_cross_entropy(
            case.student_hidden, case.student_head, token_T, weight=case.weight, temperature=2.0
        )

    assert_near(case, loss_of, wanted, 1e-5 if dtype == torch.float32 else 4e-3)
