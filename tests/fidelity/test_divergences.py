"""Every divergence against a float64 reference written from the papers' formulas: values and both gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opd.errors import ConfigError, OpdError
from opd.losses import DIVERGENCES, linear_cross_entropy, linear_divergence, register

BETAS = {"forward_kl": 0.5, "reverse_kl": 0.5, "jsd": 0.3}


def kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a ‖ b) from probabilities, 0 log 0 = 0, [T, V] -> [T]."""
    return torch.where(a > 0, a * (a.log() - b.log()), 0.0).sum(-1)


def mixture_divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """GKD, arXiv 2306.13649: β KL(T ‖ βT + (1−β)S) + (1−β) KL(S ‖ βT + (1−β)S)."""
    middle = beta * teacher + (1 - beta) * student
    return beta * kl(teacher, middle) + (1 - beta) * kl(student, middle)


REFERENCE: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "forward_kl": lambda student, teacher, beta: kl(teacher, student),
    "reverse_kl": lambda student, teacher, beta: kl(student, teacher),
    "jsd": mixture_divergence,
}


class Case:
    """Random hidden states and heads; teacher wider than student; some weights zero."""

    def __init__(self, seed: int, positions: int, vocab: int, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.hidden, self.head = draw(positions, 6) * scale, draw(vocab, 6)
        self.teacher_hidden, self.teacher_head = draw(positions, 9) * scale, draw(vocab, 9)
        self.weight = draw(positions).abs() * (draw(positions) > -0.5)
        self.weight[0] = 0.7

    def expected(self, name: str, beta: float, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, gradient of hidden states, gradient of the head: float64, full logits, autograd."""
        hidden, head = self.hidden.clone().requires_grad_(), self.head.clone().requires_grad_()
        student = (hidden @ head.T / temperature).softmax(-1)
        teacher = (self.teacher_hidden @ self.teacher_head.T / temperature).softmax(-1)
        loss = (self.weight * REFERENCE[name](student, teacher, beta)).sum()
        loss.backward()
        assert hidden.grad is not None
        assert head.grad is not None
        return loss.detach(), hidden.grad, head.grad

    def ours(self, dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[Tensor, Tensor, Tensor]:
        hidden, head = self.hidden.to(dtype).requires_grad_(), self.head.to(dtype).requires_grad_()
        loss = linear_divergence(
            hidden,
            head,
            self.teacher_hidden.to(dtype),
            self.teacher_head.to(dtype),
            weight=self.weight.float(),
            **settings,
        )
        loss.backward()
        assert loss.dtype == torch.float32
        assert hidden.grad is not None
        assert head.grad is not None
        return loss.detach(), hidden.grad, head.grad


def close(ours: Tensor, expected: Tensor, tolerance: float = 2e-5) -> bool:
    """Relative to the largest value of the whole tensor, and to float32's rounding of probabilities near 1."""
    allowed = tolerance * float(expected.abs().max()) + 1e-6
    return bool((ours.double() - expected).abs().max() <= allowed)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", list(REFERENCE))
@settings(max_examples=15, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10_000), positions=st.integers(1, 9), vocab=st.integers(2, 40), chunk=st.integers(1, 10))
def test_value_and_gradients(name: str, temperature: float, seed: int, positions: int, vocab: int, chunk: int) -> None:
    case, beta = Case(seed, positions, vocab), BETAS[name]
    expected = case.expected(name, beta, temperature)
    ours = case.ours(divergence=name, beta=beta, temperature=temperature, chunk_tokens=chunk)
    for mine, reference in zip(ours, expected, strict=True):
        assert close(mine, reference)


@pytest.mark.parametrize("scale", [30.0, 3000.0])
@pytest.mark.parametrize("name", list(REFERENCE))
def test_extreme_logits_stay_finite_and_right(name: str, scale: float) -> None:
    """Logits of thousands: most probabilities underflow to zero, and 0 log 0 is 0."""
    case = Case(3, 8, 30, scale)
    loss, grad_hidden, grad_head = case.ours(divergence=name, beta=BETAS[name])
    assert torch.isfinite(loss)
    assert torch.isfinite(grad_hidden).all()
    assert torch.isfinite(grad_head).all()
    student = (case.hidden @ case.head.T).log_softmax(-1)
    teacher = (case.teacher_hidden @ case.teacher_head.T).log_softmax(-1)
    if name == "forward_kl":
        exact = (teacher.exp() * (teacher - student)).sum(-1)
    elif name == "reverse_kl":
        exact = (student.exp() * (student - teacher)).sum(-1)
    else:
        exact = mixture_divergence(student.exp(), teacher.exp(), BETAS[name])
    assert float(loss) == pytest.approx(float((case.weight * exact).sum()), rel=1e-4)


@pytest.mark.parametrize("name", list(REFERENCE))
def test_positions_of_weight_zero_cannot_leak(name: str) -> None:
    case = Case(1, 7, 20)
    case.weight[2] = case.weight[5] = 0.0
    expected = case.ours(divergence=name)
    case.hidden[2], case.teacher_hidden[5] = torch.nan, torch.inf
    ours = case.ours(divergence=name)
    for mine, reference in zip(ours, expected, strict=True):
        assert torch.equal(mine.nan_to_num(7.0), reference)


@pytest.mark.parametrize("name", list(REFERENCE))
def test_zero_at_equality_and_positive_elsewhere(name: str) -> None:
    case = Case(5, 6, 25)
    assert float(case.ours(divergence=name)[0]) > 0
    same = linear_divergence(
        case.hidden.float(),
        case.head.float(),
        case.hidden.float(),
        case.head.float(),
        weight=case.weight.float(),
        divergence=name,
    )
    assert float(same) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", list(REFERENCE))
def test_chunks_add_up(name: str) -> None:
    case = Case(9, 23, 31)
    whole = case.ours(divergence=name, chunk_tokens=100)
    for chunk in (1, 2, 5, 22, 23):
        for mine, reference in zip(case.ours(divergence=name, chunk_tokens=chunk), whole, strict=True):
            assert torch.allclose(mine, reference, rtol=1e-4, atol=1e-5)


def test_jsd_tends_to_the_two_kls() -> None:
    case = Case(11, 8, 20)
    small = 1e-5
    forward, reverse = (float(case.ours(divergence=n)[0]) for n in ("forward_kl", "reverse_kl"))
    assert float(case.ours(divergence="jsd", beta=small)[0]) / small == pytest.approx(forward, rel=0.02)
    assert float(case.ours(divergence="jsd", beta=1 - small)[0]) / small == pytest.approx(reverse, rel=0.02)


def test_the_incoming_gradient_scales_and_frozen_parts_get_none() -> None:
    case = Case(2, 5, 12)
    _, grad_hidden, _ = case.ours()
    hidden = case.hidden.float().requires_grad_()
    rest = (case.head.float(), case.teacher_hidden.float(), case.teacher_head.float())
    (3 * linear_divergence(hidden, *rest, weight=case.weight.float())).backward()
    assert hidden.grad is not None
    assert torch.allclose(hidden.grad, 3 * grad_hidden)
    teacher_hidden = case.teacher_hidden.float().requires_grad_()
    loss = linear_divergence(hidden, rest[0], teacher_hidden, rest[2], weight=case.weight.float())
    loss.backward()
    assert teacher_hidden.grad is None
    with torch.no_grad():
        assert not linear_divergence(hidden, *rest, weight=case.weight.float()).requires_grad


def test_a_tied_head_collects_both_gradients() -> None:
    case = Case(4, 5, 12)
    head = case.head.float().requires_grad_()
    embedded = head[torch.tensor([1, 2, 3, 4, 5])]
    teacher = (case.teacher_hidden.float(), case.teacher_head.float())
    linear_divergence(embedded, head, *teacher, weight=case.weight.float()).backward()
    reference = case.head.clone().requires_grad_()
    hidden = reference[torch.tensor([1, 2, 3, 4, 5])]
    student = (hidden @ reference.T).softmax(-1)
    target = (case.teacher_hidden @ case.teacher_head.T).softmax(-1)
    (case.weight * kl(target, student)).sum().backward()
    assert head.grad is not None
    assert reference.grad is not None
    assert close(head.grad, reference.grad)


def test_padded_heads_are_compared_on_the_rows_both_have() -> None:
    case = Case(6, 5, 12)
    expected = case.expected("forward_kl", 0.5, 1.0)
    case.head = torch.cat([case.head, torch.randn(3, 6, dtype=torch.float64)])
    case.teacher_head = torch.cat([case.teacher_head, torch.randn(7, 9, dtype=torch.float64)])
    loss, grad_hidden, grad_head = case.ours(vocab_size=12)
    assert close(loss, expected[0])
    assert close(grad_hidden, expected[1])
    assert close(grad_head[:12], expected[2])
    assert not grad_head[12:].any()
    with pytest.raises(OpdError, match="15 rows and the teacher's 19.*vocab_size"):
        case.ours()


@pytest.mark.parametrize("name", list(REFERENCE))
def test_bfloat16_inputs_with_float32_softmax(name: str) -> None:
    case = Case(8, 16, 40)
    case.hidden, case.head = case.hidden.bfloat16().double(), case.head.bfloat16().double()
    case.teacher_hidden = case.teacher_hidden.bfloat16().double()
    case.teacher_head = case.teacher_head.bfloat16().double()
    expected = case.expected(name, BETAS[name], 1.0)
    for mine, reference in zip(case.ours(torch.bfloat16, divergence=name, beta=BETAS[name]), expected, strict=True):
        assert close(mine, reference, 3e-2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_cross_entropy(temperature: float) -> None:
    case = Case(7, 11, 30)
    token = torch.arange(11) * 2
    hidden, head = case.hidden.clone().requires_grad_(), case.head.clone().requires_grad_()
    each = torch.nn.functional.cross_entropy(hidden @ head.T / temperature, token, reduction="none")
    (case.weight * each).sum().backward()
    ours_hidden, ours_head = case.hidden.float().requires_grad_(), case.head.float().requires_grad_()
    weight = case.weight.float()
    loss = linear_cross_entropy(ours_hidden, ours_head, token, weight=weight, temperature=temperature, chunk_tokens=4)
    loss.backward()
    assert float(loss) == pytest.approx(float((case.weight * each.detach()).sum()), rel=1e-5)
    for ours, reference in ((ours_hidden, hidden), (ours_head, head)):
        assert ours.grad is not None
        assert reference.grad is not None
        assert close(ours.grad, reference.grad)


def test_a_divergence_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The α-divergence, (1 − Σ p^α q^{1−α}) / (α (1 − α)), as two element-wise functions."""
    monkeypatch.setattr("opd.losses.divergences.DIVERGENCES", DIVERGENCES)
    alpha = 0.5
    scale = 1 / (alpha * (1 - alpha))
    register(
        "alpha_half",
        density=lambda log_p, log_q, p, q, beta: (p - (alpha * log_p + (1 - alpha) * log_q).exp()) * scale,
        slope=lambda log_p, log_q, p, q, beta: -(alpha * log_p + (1 - alpha) * log_q).exp() * alpha * scale,
    )
    try:
        monkeypatch.setitem(
            REFERENCE,
            "alpha_half",
            lambda student, teacher, beta: (1 - (student.sqrt() * teacher.sqrt()).sum(-1)) * scale,
        )
        case = Case(12, 9, 20)
        for mine, reference in zip(
            case.ours(divergence="alpha_half"), case.expected("alpha_half", 0.5, 1.0), strict=True
        ):
            assert close(mine, reference)
        with pytest.raises(ConfigError, match="exists"):
            register("alpha_half", DIVERGENCES["jsd"].density, DIVERGENCES["jsd"].slope)
    finally:
        DIVERGENCES.pop("alpha_half")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"divergence": "kl"}, "no divergence 'kl'; choose forward_kl, reverse_kl, jsd"),
        ({"divergence": "jsd", "beta": 0.0}, "use forward_kl"),
        ({"divergence": "jsd", "beta": 1.0}, "reverse_kl"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Case(0, 4, 9).ours(**changes)


def test_inputs_that_make_no_sense_are_refused() -> None:
    case = Case(0, 4, 9)
    case.weight[1] = -1
    with pytest.raises(OpdError, match="finite and not negative"):
        case.ours()
    case.weight[1] = torch.nan
    with pytest.raises(OpdError, match="finite and not negative"):
        case.ours()
    case.weight = torch.ones(3)
    with pytest.raises(OpdError, match="4 positions"):
        case.ours()
