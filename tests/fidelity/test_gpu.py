"""The walk that CUDA takes, run on a CPU: eager, compiled, and with Triton kernels in Triton's interpreter.

The interpreter has to be chosen before Triton is imported, so the tests of the kernels run in a process of their own:
``TRITON_INTERPRET=1 python -m pytest tests/fidelity/test_gpu.py -k triton``.
Suffixes: T positions, N rows, V vocabulary, D hidden units.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from opd.losses import (
    Support,
    direct_estimate,
    fused,
    gpu,
    linear_cross_entropy,
    linear_divergence,
    linear_entropy,
    linear_mixture_divergence,
    linear_token_loss,
)
from support.cases import FORMULAS, Case, assert_same, make_case, ours, reference

NAMES = sorted(FORMULAS)

KERNEL_NAMES = ("forward_kl", "reverse_kl", "jsd")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")

VOCAB = 300


def eager(name: str) -> object:
    return pytest.param("eager", name, id=f"eager-{name}")


EAGER = [eager(name) for name in NAMES]
TRITON = [pytest.param("triton", name, id=f"triton-{name}", marks=interpreted) for name in KERNEL_NAMES]
FUSED = [pytest.param("fused", name, id=f"fused-{name}") for name in NAMES]
"""The function that is compiled, as it stands."""
COMPILED = [pytest.param("compiled", name, id=f"compiled-{name}", marks=pytest.mark.slow) for name in NAMES]
ONE_EACH = [EAGER[0], *FUSED, COMPILED[0], *TRITON]


@pytest.fixture(autouse=True)
def on_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the walk of a GPU, in chunks of 3 and groups of 6 float32 rows of the default vocabulary."""
    route = request.node.callspec.params.get("route", "eager") if hasattr(request.node, "callspec") else "eager"
    monkeypatch.setattr(gpu, "runs_on_gpu", lambda hidden_TD: True)
    monkeypatch.setattr(gpu, "CHUNK_BYTES", 3 * 4 * VOCAB)
    monkeypatch.setattr(gpu, "GROUP_BYTES", 6 * 4 * VOCAB)
    monkeypatch.setattr(gpu, "BLOCK_BYTES", 2 * 4 * VOCAB)
    monkeypatch.setattr("opd.losses.full_vocab.has_triton", lambda: route == "triton")
    monkeypatch.setattr(fused, "has_triton", lambda: route != "eager")
    if route in ("compiled", "fused"):
        monkeypatch.setattr(fused, "WITH_KERNEL", ())
    if route == "fused":
        monkeypatch.setattr(fused, "compiled_block", fused.compiled_block.__wrapped__)
        monkeypatch.setattr(torch, "compile", lambda function: function)
    if route == "triton":
        from opd.losses import kernels

        monkeypatch.setattr(kernels, "NUM_WARPS", 1)  # tiles of 128: three to a row


def one_case(seed: int = 0, **options: float) -> Case:
    return make_case(seed, tokens=11, vocab=VOCAB, **options)  # type: ignore[arg-type]


@needs_triton
@pytest.mark.slow
def test_the_kernels_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", __file__, "-k", "triton", "-p", "no:cacheprovider"]
    finished = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=500
    )
    assert finished.returncode == 0, finished.stdout[-5000:]


@pytest.mark.slow
def test_the_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    script, out = Path(__file__).parents[2] / "benchmarks" / "gpu.py", tmp_path / "gpu.json"
    command = [sys.executable, str(script), "--small", "--repeats", "1", "--out", str(out)]
    trl = os.environ.get("OPD_TRL_PYTHON")  # an environment with TRL, which is no part of opd's
    command += ["--trl-python", trl] if trl else []
    finished = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert finished.returncode == 0, finished.stderr[-3000:]
    report = json.loads(out.read_text())
    assert {row["variant"] for row in report["loss"]} >= {"products", "opd, float32 logits", "whole logits, autograd"}
    assert all(row["error_hidden"] < 0.05 for row in report["loss"] if str(row["variant"]).startswith("opd"))
    assert len(report["rollout"]) == 5
    assert all(row["tokens_per_second"] > 0 for row in report["rollout"])
    assert [row["variant"] for row in report["step"]] == (["opd", "TRL"] if trl else ["opd"])
    assert all(0 < row["error"] < 0.02 and row["step"] > 0 for row in report["step"])
    assert [(row["variant"], row["error"]) for row in report["recipes"]] == [("hint", "")]


# ---- divergences -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("route", "name"), EAGER + COMPILED + TRITON)
def test_value_and_gradients_equal_the_paper(route: str, name: str) -> None:
    case = one_case(1)
    got = ours(case, divergence=name, beta=0.3, temperature=2.0)
    assert_same(got, reference(case, FORMULAS[name], beta=0.3, temperature=2.0))


@pytest.mark.parametrize(("route", "name"), [*FUSED, *TRITON])
@pytest.mark.parametrize("vocab", [2, 255, 256, 257, 1000])
@pytest.mark.parametrize("beta", [0.05, 0.9])
def test_every_width_and_temperature(route: str, name: str, vocab: int, beta: float) -> None:
    case = make_case(vocab, tokens=4, vocab=vocab, scale=4.0)
    got = ours(case, divergence=name, beta=beta, temperature=0.5)
    assert_same(got, reference(case, FORMULAS[name], beta=beta, temperature=0.5))


@pytest.mark.parametrize(("route", "name"), [*EAGER, *FUSED, COMPILED[0], *TRITON])
@pytest.mark.parametrize(("logits", "bound"), [("float32", 4e-3), ("bfloat16", 3e-2)])
def test_bfloat16_models(route: str, name: str, logits: str, bound: float) -> None:
    """Against float64 of the same rounded inputs; only products and gradients are rounded on the way."""
    case = one_case(2, width=64, teacher_width=64)
    half = Case(*(getattr(case, field).detach().bfloat16() for field in case.__dataclass_fields__))
    half = replace(half, weight=case.weight)
    half.student_hidden.requires_grad_()
    half.student_head.requires_grad_()
    got, right = ours(half, divergence=name, logits=logits), reference(half, FORMULAS[name])
    assert got[1].dtype == got[2].dtype == torch.bfloat16
    for value, wanted in zip(got, right, strict=True):
        assert float((value.double() - wanted).norm() / wanted.norm()) < bound


@pytest.mark.parametrize(("route", "name"), [*EAGER, *FUSED, COMPILED[1], *TRITON])
def test_rows_of_the_head_beyond_the_vocabulary_do_not_count(route: str, name: str) -> None:
    case = one_case(3)
    got = ours(case, divergence=name, vocab_size=270)
    assert_same(got, reference(case, FORMULAS[name], vocab=270))
    assert (got[2][270:] == 0).all()


@pytest.mark.parametrize(("route", "name"), [*EAGER, *FUSED, *TRITON])
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_logits(route: str, name: str, size: float) -> None:
    """Identity heads, so that the hidden states are the logits; most probabilities underflow to exactly 0."""
    student = torch.tensor([[1.0, -1, 0, -1], [1, -1, -1, 0], [-1, -1, 1, 1], [1, 0, 0, 0]]) * size
    teacher = torch.tensor([[1.0, -1, 0, -1], [-1, 1, -1, 0], [1, 1, -1, -1], [0.999, 1, 0, 0]]) * size
    head = torch.eye(4)
    case = Case(student.requires_grad_(), head.clone().requires_grad_(), teacher, head, torch.ones(4))
    got = ours(case, divergence=name)
    gpu.runs_on_gpu = lambda hidden_TD: False  # the fixture puts it back
    assert_same(got, ours(case, divergence=name))


@pytest.mark.parametrize(("route", "name"), COMPILED)
def test_compiled_code_on_extreme_logits_and_masked_rows(route: str, name: str) -> None:
    """At the sizes and settings of the test against the paper, so that nothing is compiled anew."""
    case = one_case(1, scale=40.0)
    wanted = reference(case, FORMULAS[name], beta=0.3, temperature=2.0)
    with torch.no_grad():
        case.student_hidden[case.weight == 0] = math.nan
        case.teacher_hidden[case.weight == 0] = math.inf
    assert_same(ours(case, divergence=name, beta=0.3, temperature=2.0), wanted, atol=1e-5)


@interpreted
@pytest.mark.parametrize("route", ["triton"])
@pytest.mark.parametrize("kind", KERNEL_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_kernels_on_logits_of_minus_infinity(route: str, kind: str, dtype: torch.dtype) -> None:
    from opd.losses import kernels

    random = torch.Generator().manual_seed(0)
    logits_NV, teacher_NV = (torch.randn(3, VOCAB, generator=random).to(dtype) for _ in range(2))
    logits_NV[0, 7], teacher_NV[0, 7], teacher_NV[1, 9] = -math.inf, -math.inf, -math.inf
    if kind != "reverse_kl":
        logits_NV[2, 5] = -math.inf
    if kind == "reverse_kl":
        teacher_NV[1, 9] = 0.0  # it is infinite where the student has mass and the teacher has none
    if kind == "forward_kl":
        logits_NV[2, 5] = 0.0
    scale_N, grad_NV = torch.tensor([1.0, 0.5, 2.0]), torch.empty(3, VOCAB)
    loss_N = kernels.divergence(kind, logits_NV, teacher_NV, scale_N, grad_NV, inverse_temperature=1.0, beta=0.3)
    double = logits_NV.double().requires_grad_()
    right_N = FORMULAS[kind](double.softmax(-1), teacher_NV.double().softmax(-1), 0.3)
    (right,) = torch.autograd.grad((right_N * scale_N).sum(), double)
    assert_same((loss_N, grad_NV), (right_N.detach(), right.nan_to_num(0.0)))


@pytest.mark.parametrize(("route", "name"), [eager("forward_kl"), eager("reverse_kl"), *TRITON])
def test_near_equality_values_keep_their_digits(route: str, name: str) -> None:
    case = one_case(4, teacher_width=8)
    near = replace(
        case,
        teacher_hidden=case.student_hidden.detach(),
        teacher_head=case.student_head.detach()
        + 1e-3 * torch.randn(VOCAB, 8, generator=torch.Generator().manual_seed(0)),
    )
    value, right = ours(near, divergence=name)[0], reference(near, FORMULAS[name])[0]
    assert 0 < float(right) < 1e-4
    assert float(value) == pytest.approx(float(right), rel=2e-2 if name == "jsd" else 2e-3)
    same = replace(near, teacher_head=case.student_head.detach())
    got = ours(same, divergence=name)
    assert max(float(x.abs().max()) for x in got) < 1e-6


# ---- the walk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("route", "name"), ONE_EACH)
@pytest.mark.parametrize("filling", [math.nan, math.inf])
def test_masked_rows_cannot_leak(route: str, name: str, filling: float) -> None:
    case = one_case(5)
    masked = case.weight == 0
    wanted = reference(case, FORMULAS[name])
    with torch.no_grad():
        case.student_hidden[masked] = filling
        case.teacher_hidden[masked] = filling
    per_token = torch.empty(11)
    got = ours(case, divergence=name, per_token=per_token)
    assert_same(got, wanted)
    assert (got[1][masked] == 0).all()
    assert per_token.isnan().tolist() == masked.tolist()
    assert float(per_token[~masked] @ case.weight[~masked]) == pytest.approx(float(got[0]), rel=1e-6)


@pytest.mark.parametrize(("route", "name"), [EAGER[0], *TRITON])
@pytest.mark.parametrize("tokens", [0, 11])
def test_an_empty_mask_gives_zeros(route: str, name: str, tokens: int) -> None:
    case = replace(make_case(6, tokens=11, vocab=VOCAB), weight=torch.zeros(11))
    case = replace(
        case,
        student_hidden=case.student_hidden.detach()[:tokens].requires_grad_(),
        teacher_hidden=case.teacher_hidden[:tokens],
        weight=case.weight[:tokens],
    )
    assert all(not x.any() for x in ours(case, divergence=name))


@pytest.mark.parametrize(("route", "name"), [EAGER[0], *TRITON])
def test_without_gradients_the_value_is_the_same(route: str, name: str) -> None:
    case = one_case(7)
    value = ours(case, divergence=name)[0]
    with torch.no_grad():
        alone = linear_divergence(*case.tensors(), weight=case.weight, divergence=name)
    assert float(alone) == pytest.approx(float(value), rel=1e-6)


@pytest.mark.parametrize(("route", "name"), [EAGER[0], *TRITON])
def test_one_of_the_two_gradients_and_a_factor(route: str, name: str) -> None:
    case = one_case(8)
    _, grad_hidden, grad_head = ours(case, divergence=name)
    frozen = replace(case, student_head=case.student_head.detach())
    loss = linear_divergence(*frozen.tensors(), weight=case.weight, divergence=name)
    assert_same(torch.autograd.grad(3 * loss, case.student_hidden), (3 * grad_hidden,), rtol=1e-6)
    frozen = replace(case, student_hidden=case.student_hidden.detach())
    loss = linear_divergence(*frozen.tensors(), weight=case.weight, divergence=name)
    assert_same(torch.autograd.grad(3 * loss, case.student_head), (3 * grad_head,), rtol=1e-6)


def test_chunks_are_whole_tiles_and_groups_whole_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for vocab, logits, expected in (
        (151_936, torch.float32, (256, 1536)),
        (151_936, torch.bfloat16, (512, 1536)),
        (32_000, torch.float32, (1152, 6912)),
        (10**9, torch.float32, (1, 1)),
    ):
        assert gpu.chunk_and_group(vocab, logits, torch.bfloat16, None) == expected
    assert gpu.chunk_and_group(151_936, torch.float32, torch.bfloat16, 7) == (7, 7)


def test_a_wrong_weight_or_token_makes_the_loss_nan() -> None:
    """Where a CPU raises, a GPU does not read the values back."""
    kept_N, weight_N = gpu.kept_positions(torch.tensor([1.0, -1.0, math.inf, 0.0]), torch.device("cpu"))
    assert kept_N.tolist() == [0, 1, 2, 3]
    assert weight_N.isnan().tolist() == [False, True, True, False]
    case = one_case(9)
    token_T = torch.zeros(11, dtype=torch.int64)
    token_T[case.weight == 0] = -100
    assert linear_cross_entropy(case.student_hidden, case.student_head, token_T, weight=case.weight).isfinite()
    token_T[0] = VOCAB
    assert linear_cross_entropy(case.student_hidden, case.student_head, token_T, weight=case.weight).isnan()


def test_what_has_no_kernel_equals_the_walk_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    case, other = one_case(10), one_case(11)
    teachers = [(c.teacher_hidden, c.teacher_head) for c in (case, other)]
    share_TK = torch.rand(11, 2).softmax(-1)
    student = case.student_hidden, case.student_head

    def all_of_them() -> list[Tensor]:
        losses = [
            linear_divergence(*case.tensors(), weight=case.weight, support=Support(5, rest=rest), temperature=2.0)
            for rest in ("tail", "renormalise", "correct")
        ]
        losses.append(linear_divergence(*case.tensors(), weight=case.weight, clip=0.01, divergence="jsd"))
        losses += [
            linear_mixture_divergence(*student, teachers, share_TK, geometric=geometric, weight=case.weight)
            for geometric in (False, True)
        ]
        gradients = [g for loss in losses for g in torch.autograd.grad(loss, student)]
        return [*losses, *gradients, linear_entropy(*student, temperature=2.0)]

    got = [x.detach() for x in all_of_them()]
    monkeypatch.undo()
    assert_same(tuple(got), tuple(x.detach() for x in all_of_them()))


# ---- tokens ----------------------------------------------------------------------------------------------------

TOKEN_ROUTES = ["eager", pytest.param("triton", marks=interpreted)]


@pytest.mark.parametrize("route", TOKEN_ROUTES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("vocab", [3, VOCAB, 1000])
def test_cross_entropy_equals_torch_in_float64(route: str, temperature: float, vocab: int) -> None:
    case = make_case(12, tokens=11, vocab=vocab)
    token_T = torch.randint(vocab, (11,), generator=torch.Generator().manual_seed(1))
    loss = linear_cross_entropy(
        case.student_hidden, case.student_head, token_T, weight=case.weight, temperature=temperature
    )
    got = (loss.detach(), *torch.autograd.grad(loss, (case.student_hidden, case.student_head)))
    c = case.double()
    logits = c.student_hidden @ c.student_head.T / temperature
    right = (F.cross_entropy(logits, token_T, reduction="none") * c.weight).sum()
    assert_same(got, (right.detach(), *torch.autograd.grad(right, (c.student_hidden, c.student_head))))


@pytest.mark.parametrize("route", TOKEN_ROUTES)
@pytest.mark.parametrize("logits", ["float32", "bfloat16"])
def test_a_loss_of_a_token_in_bfloat16(route: str, logits: str) -> None:
    case = one_case(13, width=64)
    token_T = torch.randint(VOCAB, (11,), generator=torch.Generator().manual_seed(1))
    hidden, head = (x.detach().bfloat16().requires_grad_() for x in (case.student_hidden, case.student_head))
    teacher_T = torch.full((11,), -4.0)
    teacher_T[case.weight == 0] = math.nan
    function = direct_estimate(teacher_T, "k2")
    loss = linear_token_loss(hidden, head, token_T, function, weight=case.weight, logits=logits)  # type: ignore[arg-type]
    got = (loss.detach(), *torch.autograd.grad(loss, (hidden, head)))
    c = replace(case, student_hidden=hidden, student_head=head).double()
    log_p = (c.student_hidden @ c.student_head.T).log_softmax(-1).gather(1, token_T[:, None])[:, 0]
    kept = case.weight != 0
    right = ((-4.0 - log_p[kept]).square() / 2 * c.weight[kept]).sum()
    wanted = (right.detach(), *torch.autograd.grad(right, (c.student_hidden, c.student_head)))
    for value, exact in zip(got, wanted, strict=True):
        assert float((value.double() - exact).norm() / exact.norm()) < (4e-3 if logits == "float32" else 3e-2)


@interpreted
@pytest.mark.parametrize("route", ["triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_scales_and_rounds_in_one_pass(route: str, dtype: torch.dtype) -> None:
    from opd.losses import kernels

    x, factor = torch.randn(9, 1001), torch.tensor(0.3)
    # The interpreter cuts bfloat16 off where a GPU rounds.
    torch.testing.assert_close(kernels.scaled(x, factor, dtype).float(), x * factor, rtol=2**-7, atol=0)


# ---- without Triton --------------------------------------------------------------------------------------------


def test_without_triton_one_warning_says_so(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "opd.losses.kernels", None)  # an import of it fails
    fused.has_triton.cache_clear()
    with caplog.at_level(logging.WARNING, logger="opd.losses"):
        assert not fused.has_triton()
        assert not fused.has_triton()
    fused.has_triton.cache_clear()
    (record,) = caplog.records
    assert "no Triton here" in record.message
