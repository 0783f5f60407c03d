"""Hidden states: the distance and its gradient against float64, the bridge against what it is meant to be."""

import pytest
import torch

from opd.errors import OpdError
from opd.losses import hidden_distance, linear_entropy
from opd.teachers.hidden import fit_bridge, matching_layers


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_distance_equals_the_formula(normalise: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(6, 3, 8, generator=generator).to(dtype) for _ in range(2))
    weight = torch.tensor([0.5, 0.0, 2.0, 1.0, 0.0, 0.25])
    ours.requires_grad_()
    loss = hidden_distance(ours, theirs, weight=weight, normalise=normalise)
    a, b = ours.detach().double().requires_grad_(), theirs.double()
    x, y = (a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)) if normalise else (a, b)
    wanted = sum(
        w * sum(((x[t, k] - y[t, k]) ** 2).sum() / 8 for k in range(3)) / 3 for t, w in enumerate(weight.double())
    )
    assert isinstance(wanted, torch.Tensor)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-7)
    (got,), (right,) = torch.autograd.grad(loss, ours), torch.autograd.grad(wanted, a)
    torch.testing.assert_close(got.double(), right, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)


def test_states_of_another_width_need_a_bridge() -> None:
    with pytest.raises(OpdError, match="need a bridge"):
        hidden_distance(torch.zeros(2, 1, 3), torch.zeros(2, 1, 4), weight=torch.ones(2))


def test_a_bridge_finds_what_the_student_knows_of_the_teacher() -> None:
    """Where the teacher's states are a linear function of the student's, the two projections agree exactly."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(200, 2, 6, generator=generator)
    maps = torch.randn(2, 6, 11, generator=generator)
    teacher = torch.einsum("tkd,kde->tke", student, maps) + 3.0
    ours, theirs = fit_bridge(student, teacher, rank=4)
    torch.testing.assert_close(ours(student), theirs(teacher), rtol=1e-3, atol=1e-3)
    for k in range(2):  # the leading directions: as much variance as the best four have
        variances = torch.linalg.svdvals((teacher[:, k] - teacher[:, k].mean(0)).double()).square()
        assert float(theirs(teacher)[:, k].double().square().sum()) == pytest.approx(
            float(variances[:4].sum()), rel=1e-4
        )


def test_layers_match_at_the_same_relative_depth() -> None:
    assert matching_layers(range(1, 5), 4, 7) == [1, 3, 5, 7]
    assert matching_layers([1, 2, 3], 3, 3) == [1, 2, 3]
    assert matching_layers([1], 1, 3) == [1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_entropy_equals_torch_in_float64(temperature: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(9, 5, generator=generator) * scale, torch.randn(21, 5, generator=generator)
    got = linear_entropy(hidden, head, temperature=temperature, chunk_tokens=4)
    logits = hidden.double() @ head.double().T / temperature
    wanted = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)
