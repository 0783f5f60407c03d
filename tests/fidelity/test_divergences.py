"""linear_divergence and linear_cross_entropy against the papers' formulas in float64.

The references know nothing of the package: they take probabilities from a softmax over whole logits, write the
formula as printed, and leave the gradients to autograd.
Suffixes: T positions, V vocabulary, D student's hidden units, E teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from opd.axes.divergence import WITHOUT_BETA
from opd.errors import ConfigError, OpdError
from opd.losses import DIVERGENCES, linear_cross_entropy, linear_divergence, register
from support.cases import FORMULAS, Case, Formula, assert_same, kl, make_case, mixture, ours, reference

NAMES = sorted(FORMULAS)


# ---- value and gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(1, 12),
    vocab=st.integers(2, 70),
    width=st.integers(1, 17),
    teacher_width=st.integers(1, 17),
    scale=st.sampled_from([0.0, 0.5, 4.0]),
    beta=st.sampled_from([0.05, 0.5, 0.9]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    chunk_tokens=st.sampled_from([None, 1, 3, 5]),
)
def test_value_and_gradients_equal_the_paper(
    name: str,
    seed: int,
    tokens: int,
    vocab: int,
    width: int,
    teacher_width: int,
    scale: float,
    beta: float,
    temperature: float,
    chunk_tokens: int | None,
) -> None:
    case = make_case(seed, tokens=tokens, vocab=vocab, width=width, teacher_width=teacher_width, scale=scale)
    got = ours(case, divergence=name, beta=beta, temperature=temperature, chunk_tokens=chunk_tokens)
    assert_same(got, reference(case, FORMULAS[name], beta=beta, temperature=temperature))


CLIPPED: dict[str, Formula] = {
    "forward_kl": lambda p, q, beta: q * (q / p).log(),
    "reverse_kl": lambda p, q, beta: p * (p / q).log(),
    "jsd": lambda p, q, beta: (
        beta * q * (q / mixture(p, q, beta)).log() + (1 - beta) * p * (p / mixture(p, q, beta)).log()
    ),
}
"""What OPSD sums over the vocabulary, term by term."""


@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("limit", [0.002, 0.05, 10.0])
def test_clipped_terms_equal_the_paper(name: str, limit: float) -> None:
    case = make_case(3, scale=4.0)
    terms = CLIPPED[name]
    wanted = reference(case, lambda p, q, beta: terms(p, q, beta).clamp_max(limit).sum(-1), beta=0.3)
    assert_same(ours(case, divergence=name, beta=0.3, clip=limit), wanted)
    whole = ours(case, divergence=name, beta=0.3)
    assert torch.allclose(whole[1], wanted[1].float(), atol=1e-5) == (limit == 10.0)


def test_clip_goes_with_three_divergences_alone() -> None:
    with pytest.raises(
        ConfigError, match=r"alpha cannot be clipped. Fix: leave clip out, or choose forward_kl, reverse_kl, jsd"
    ):
        ours(make_case(), divergence="alpha", clip=0.1)


def test_a_value_worked_out_by_hand() -> None:
    """p = (1/2, 1/2), q = (3/4, 1/4): the directions cannot be swapped unnoticed."""
    hidden, teacher = torch.ones(1, 1), torch.tensor([[math.log(3.0)], [0.0]])
    student = torch.zeros(2, 1)
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    backward = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    one = torch.ones(1)
    assert float(linear_divergence(hidden, student, hidden, teacher, weight=one)) == pytest.approx(forward, abs=1e-6)
    reverse = linear_divergence(hidden, student, hidden, teacher, weight=one, divergence="reverse_kl")
    assert float(reverse) == pytest.approx(backward, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("chunk_tokens", [None, 2])
def test_cross_entropy_equals_torch_in_float64(temperature: float, chunk_tokens: int | None) -> None:
    case = make_case(3, tokens=9)
    token = torch.randint(33, (9,))
    loss = linear_cross_entropy(
        case.student_hidden,
        case.student_head,
        token,
        weight=case.weight,
        temperature=temperature,
        chunk_tokens=chunk_tokens,
    )
    got = (loss.detach(), *torch.autograd.grad(loss, (case.student_hidden, case.student_head)))
    c = case.double()
    logits = c.student_hidden @ c.student_head.T / temperature
    right = (F.cross_entropy(logits, token, reduction="none") * c.weight).sum()
    assert_same(got, (right.detach(), *torch.autograd.grad(right, (c.student_hidden, c.student_head))))


# ---- extreme logits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_logits_give_right_finite_values_and_gradients(name: str, size: float) -> None:
    """Identity heads, so that the hidden states are the logits; most probabilities underflow to exactly 0."""
    student = torch.tensor([[1.0, -1, 0, -1], [1, -1, -1, 0], [-1, -1, 1, 1], [1, 0, 0, 0]]) * size
    teacher = torch.tensor([[1.0, -1, 0, -1], [-1, 1, -1, 0], [1, 1, -1, -1], [0.999, 1, 0, 0]]) * size
    head = torch.eye(4)
    case = Case(student.requires_grad_(), head.clone().requires_grad_(), teacher, head, torch.ones(4))
    loss, grad_hidden, grad_head = ours(case, divergence=name)

    c = case.double()
    log_p = (c.student_hidden @ c.student_head.T).log_softmax(-1)
    log_q = (c.teacher_hidden @ c.teacher_head.T).log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    right = {
        "forward_kl": log_q.exp() * (log_q - log_p),
        "reverse_kl": log_p.exp() * (log_p - log_q),
        "jsd": 0.5 * log_q.exp() * (log_q - log_m) + 0.5 * log_p.exp() * (log_p - log_m),
        "skew_forward": log_q.exp() * (log_q - log_m),
        "skew_reverse": log_p.exp() * (log_p - log_m),
        "alpha": 2 * log_p.exp() + 2 * log_q.exp() - 4 * ((log_p + log_q) / 2).exp(),
        "total_variation": (log_p.exp() - log_q.exp()).abs() / 2,
    }[name].sum()
    gradients = torch.autograd.grad(right, (c.student_hidden, c.student_head))
    assert_same((loss, grad_hidden, grad_head), (right.detach(), *gradients))


def test_cross_entropy_of_an_impossible_token_is_finite() -> None:
    hidden = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = linear_cross_entropy(hidden, torch.eye(2), torch.tensor([1]), weight=torch.ones(1))
    loss.backward()
    assert loss.item() == 2e4
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[1.0, -1.0]]


# ---- properties ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.1, 1.0, 10.0]), nearness=st.sampled_from([0.0, 1e-4, 1.0]))
def test_never_negative_and_zero_at_equality(name: str, seed: int, scale: float, nearness: float) -> None:
    case = make_case(seed, teacher_width=8, scale=scale)
    near = replace(
        case,
        teacher_hidden=case.student_hidden.detach(),
        teacher_head=case.student_head.detach() + nearness * torch.randn(33, 8),
        weight=torch.ones(7),
    )
    per_token = torch.empty(7)
    linear_divergence(*near.tensors(), weight=near.weight, divergence=name, per_token=per_token)
    assert (per_token >= -1e-7).all()
    if nearness == 0:
        loss, grad_hidden, grad_head = ours(near, divergence=name)
        assert abs(float(loss)) < 1e-7
        assert max(float(grad_hidden.abs().max()), float(grad_head.abs().max())) < 1e-6


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_small_divergences_keep_their_digits(name: str) -> None:
    """Where the models nearly agree, 1e-6 of rounding in the logarithms would hide the value."""
    case = make_case(5, vocab=500, teacher_width=8)
    near = replace(
        case,
        teacher_hidden=case.student_hidden.detach(),
        teacher_head=case.student_head.detach() + 1e-3 * torch.randn(500, 8),
    )
    value, right = ours(near, divergence=name)[0], reference(near, FORMULAS[name])[0]
    assert 0 < float(right) < 1e-4
    assert float(value) == pytest.approx(float(right), rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk_tokens", [1, 2, 5, 11, 64])
def test_chunked_equals_whole(name: str, chunk_tokens: int) -> None:
    case = make_case(7, tokens=11)
    whole = ours(case, divergence=name, chunk_tokens=11)
    assert_same(ours(case, divergence=name, chunk_tokens=chunk_tokens), whole, rtol=1e-6, atol=1e-7)


def test_parts_of_a_head_and_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(8, tokens=11)
    whole = ours(case, chunk_tokens=4)
    monkeypatch.setattr("opd.losses.chunked.CPU_SLICE_BYTES", 5 * 4 * 8)
    monkeypatch.setattr("opd.losses.chunked.CPU_BLOCK_BYTES", 3 * 4 * 33)
    monkeypatch.setattr("opd.losses.chunked.CPU_CHUNK_BYTES", 4 * 4 * 33)
    assert_same(ours(case), whole, rtol=1e-6, atol=1e-7)


def test_per_token_is_the_divergence_of_each_position() -> None:
    case = make_case(9)
    per_token = torch.empty(7)
    loss = linear_divergence(*case.tensors(), weight=case.weight, chunk_tokens=2, per_token=per_token)
    kept = case.weight > 0
    assert per_token.isnan().tolist() == (~kept).tolist()
    for t in kept.nonzero()[:, 0].tolist():
        alone = replace(case, weight=torch.zeros(7).index_fill_(0, torch.tensor([t]), 1.0))
        assert float(per_token[t]) == pytest.approx(float(reference(alone, FORMULAS["forward_kl"])[0]), rel=1e-5)
    assert loss.item() == pytest.approx(float((per_token[kept] * case.weight[kept]).sum()), rel=1e-6)


# ---- masks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filling", [math.nan, math.inf])
def test_what_stands_in_a_masked_row_cannot_leak(filling: float) -> None:
    case = make_case(10)
    masked = case.weight == 0
    assert 0 < int(masked.sum()) < 7
    wanted = reference(case, FORMULAS["forward_kl"])
    with torch.no_grad():
        case.student_hidden[masked] = filling
        case.teacher_hidden[masked] = filling
    got = ours(case)
    assert_same(got, wanted)
    assert (got[1][masked] == 0).all()


def test_an_empty_mask_gives_zero_and_zero_gradients() -> None:
    case = replace(make_case(11), weight=torch.zeros(7))
    assert all((value == 0).all() for value in ours(case))


# ---- who gets gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hidden", "head"), [(True, False), (False, True)])
def test_gradient_to_one_input_alone(hidden: bool, head: bool) -> None:
    case = make_case(12)
    wanted = reference(case, FORMULAS["forward_kl"])
    case.student_hidden.requires_grad_(hidden)
    case.student_head.requires_grad_(head)
    linear_divergence(*case.tensors(), weight=case.weight, chunk_tokens=3).backward()
    for tensor, gradient, on in ((case.student_hidden, wanted[1], hidden), (case.student_head, wanted[2], head)):
        assert (tensor.grad is not None) == on
        if tensor.grad is not None:
            assert_same((tensor.grad,), (gradient,))


def test_the_teacher_gets_no_gradient() -> None:
    case = make_case(13)
    case.teacher_hidden.requires_grad_()
    case.teacher_head.requires_grad_()
    linear_divergence(*case.tensors(), weight=case.weight).backward()
    assert case.teacher_hidden.grad is None
    assert case.teacher_head.grad is None


def test_without_grad_the_value_is_the_same_and_no_slope_is_made() -> None:
    case = make_case(14)
    wanted = ours(case, divergence="jsd")[0]
    only_values = replace(DIVERGENCES["jsd"], slope=lambda *_: pytest.fail("slope was called"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DIVERGENCES, "jsd", only_values)
        with torch.no_grad():
            loss = linear_divergence(*case.tensors(), weight=case.weight, divergence="jsd")
        frozen = linear_divergence(*(t.detach() for t in case.tensors()), weight=case.weight, divergence="jsd")
    assert not loss.requires_grad
    assert not frozen.requires_grad
    assert float(loss) == float(wanted) == float(frozen)


def test_a_scaled_loss_scales_its_gradients() -> None:
    case = make_case(15)
    _, grad_hidden, grad_head = reference(case, FORMULAS["reverse_kl"])
    (linear_divergence(*case.tensors(), weight=case.weight, divergence="reverse_kl") * -2.5).backward()
    assert case.student_hidden.grad is not None
    assert case.student_head.grad is not None
    assert_same((case.student_hidden.grad, case.student_head.grad), (grad_hidden * -2.5, grad_head * -2.5))


def test_a_tied_head_sums_its_gradients() -> None:
    """The head is the embedding too, and two losses share it in one backward."""
    tokens, weight = torch.tensor([3, 1, 4, 1, 5, 9, 2]), torch.ones(7)
    case = make_case(16)
    table = case.student_head.detach().clone().requires_grad_()
    hidden = torch.tanh(table[tokens])
    teacher = (case.teacher_hidden, case.teacher_head)
    loss = linear_divergence(hidden, table, *teacher, weight=weight, chunk_tokens=3)
    (loss + 0.5 * linear_cross_entropy(hidden, table, tokens, weight=weight)).backward()

    table64 = table.detach().double().requires_grad_()
    hidden64 = torch.tanh(table64[tokens])
    logits = hidden64 @ table64.T
    q = (case.teacher_hidden.double() @ case.teacher_head.double().T).softmax(-1)
    right = kl(q, logits.softmax(-1)).sum() + 0.5 * F.cross_entropy(logits, tokens, reduction="sum")
    right.backward()
    assert table.grad is not None
    assert table64.grad is not None
    assert_same((table.grad,), (table64.grad,))


def test_gradients_accumulate_over_calls() -> None:
    case = make_case(17)
    wanted = reference(case, FORMULAS["forward_kl"])
    for _ in range(2):
        linear_divergence(*case.tensors(), weight=case.weight).backward()
    assert case.student_head.grad is not None
    assert_same((case.student_head.grad,), (2 * wanted[2],))


# ---- vocabularies and dtypes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_vocab_size_leaves_padding_out(name: str) -> None:
    case = make_case(18)
    padded = replace(case, teacher_head=torch.cat([case.teacher_head, torch.full((4, 12), 50.0)]))
    got = ours(padded, divergence=name, vocab_size=30)
    assert_same(got, reference(padded, FORMULAS[name], vocab=30))
    assert (got[2][30:] == 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    """Reference from the same rounded inputs; what is left is the rounding of logits and gradients to bfloat16."""
    case = make_case(19, tokens=24, vocab=200, width=32)
    student_hidden, student_head, teacher_hidden, teacher_head = (t.detach().to(dtype) for t in case.tensors())
    low = Case(student_hidden, student_head, teacher_hidden, teacher_head, case.weight)
    low.student_hidden.requires_grad_()
    low.student_head.requires_grad_()
    got = ours(low, divergence=name, chunk_tokens=7, temperature=2.0)
    assert [t.dtype for t in got] == [torch.float32, dtype, dtype]
    wanted = reference(low, FORMULAS[name], temperature=2.0)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for value, right in zip(got, wanted, strict=True):
        assert float((value.double() - right).norm()) < tolerance * float(right.norm())


# ---- adding a divergence ---------------------------------------------------------------------------------------


@pytest.fixture
def chi_squared() -> Iterator[str]:
    """Pearson's χ², Σ (p − q)² / q, registered as a user would."""
    register(
        "chi_squared",
        density=lambda log_p, log_q, p, q, beta: (p - q) * torch.expm1(log_p - log_q),
        slope=lambda log_p, log_q, p, q, beta: 2 * p * torch.expm1(log_p - log_q),
        source="Pearson 1900",
    )
    yield "chi_squared"
    del DIVERGENCES["chi_squared"]


def test_registered_divergences_need_two_functions_alone(chi_squared: str) -> None:
    case = make_case(20)
    square = reference(case, lambda p, q, beta: ((p - q) ** 2 / q).sum(-1), temperature=2.0)
    assert_same(ours(case, divergence=chi_squared, chunk_tokens=2, temperature=2.0), square)


# ---- failure messages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, math.nan])
def test_jsd_where_it_vanishes_is_refused(beta: float) -> None:
    case = make_case()
    with pytest.raises(ConfigError, match=r"beta=.*use forward_kl .* or reverse_kl"):
        linear_divergence(*case.tensors(), weight=case.weight, divergence="jsd", beta=beta)


def test_unknown_and_taken_names_are_refused() -> None:
    case = make_case()
    with pytest.raises(ConfigError, match="no divergence 'kl'. Fix: choose forward_kl, reverse_kl, jsd"):
        linear_divergence(*case.tensors(), weight=case.weight, divergence="kl")
    with pytest.raises(ConfigError, match="'jsd' exists"):
        register("jsd", lambda *a: a[0], lambda *a: a[0])


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_bad_weights_are_refused(bad: float) -> None:
    case = make_case()
    case.weight[4] = bad
    with pytest.raises(OpdError, match=r"weight is .* at position 4"):
        ours(case)


def test_shapes_that_do_not_fit_are_named() -> None:
    case = make_case()
    wide = replace(case, teacher_head=torch.zeros(40, 12))
    with pytest.raises(OpdError, match="student's head has 33 rows and the teacher's head has 40 rows.*vocab_size"):
        ours(wide)
    with pytest.raises(OpdError, match="vocab_size=34, but the student's head has 33 rows"):
        ours(wide, vocab_size=34)
    with pytest.raises(OpdError, match="vocab_size=0"):
        ours(case, vocab_size=0)
    with pytest.raises(OpdError, match=r"teacher_hidden \(7, 12\) and teacher_head \(33, 9\)"):
        ours(replace(case, teacher_head=torch.zeros(33, 9)))
    with pytest.raises(OpdError, match="teacher_hidden has 6 positions and student_hidden 7"):
        ours(replace(case, teacher_hidden=torch.zeros(6, 12)))
    with pytest.raises(OpdError, match=r"weight has shape \(6,\), and there are 7 positions"):
        ours(replace(case, weight=torch.ones(6)))
    with pytest.raises(OpdError, match=r"per_token has shape \(3,\), and there are 7 positions"):
        ours(case, per_token=torch.empty(3))
    with pytest.raises(OpdError, match=r"teacher_hidden is torch.bfloat16 and teacher_head torch.float32"):
        ours(replace(case, teacher_hidden=case.teacher_hidden.bfloat16()))


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": math.inf}, {"chunk_tokens": 0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(OpdError, match="temperature=|chunk_tokens="):
        ours(make_case(), **options)


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    case = make_case()
    student, token = (case.student_hidden, case.student_head), torch.full((7,), 33)
    with pytest.raises(OpdError, match="ids have to be 0 to 32"):
        linear_cross_entropy(*student, token, weight=torch.ones(7))
    with pytest.raises(OpdError, match=r"token has shape \(7, 1\)"):
        linear_cross_entropy(*student, token[:, None], weight=torch.ones(7))


def test_a_second_backward_is_refused() -> None:
    case = make_case()
    loss = linear_divergence(*case.tensors(), weight=case.weight)
    loss.backward(retain_graph=True)
    with pytest.raises(OpdError, match="compute the loss again"):
        loss.backward()


def test_beta_changes_exactly_the_divergences_that_take_it() -> None:
    p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.1, 0.3, 0.6]])
    for name in sorted({"forward_kl", "reverse_kl", "total_variation", "jsd", "skew_forward", "skew_reverse", "alpha"}):
        density = DIVERGENCES[name].density
        low, high = (float(density(p.log(), q.log(), p, q, beta).sum()) for beta in (0.2, 0.8))
        assert (low == high) == (name in WITHOUT_BETA), name
