"""Losses on a denoiser's prediction against torch.distributions and formulas in float64, gradients included.

Means over the noise that a step draws are taken exactly, by Gauss-Hermite quadrature.
Suffixes: K steps of a sampler, T transitions, Q nodes of the quadrature.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

pytest.importorskip("diffusers")

from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from opd.diffusion.divergences import MEANS, Divergence, coefficient_K, convert, log_density
from opd.diffusion.schedules import NoiseSchedule, schedule_of
from opd.errors import ConfigError
from opd.losses.denoising import denoising_distance, transition_log_density, transition_policy_gradient

STEPS = 5
NOISY = torch.arange(STEPS) < STEPS - 1  # DDIM's last step adds no noise


def flow(noise: float = 0.7, shift: float = 3.0) -> NoiseSchedule:
    return schedule_of(FlowMatchEulerDiscreteScheduler(shift=shift), steps=STEPS, sigmas="even", noise=noise)


def ddim(prediction: str, noise: float = 1.0) -> NoiseSchedule:
    return schedule_of(DDIMScheduler(prediction_type=prediction, clip_sample=False), steps=STEPS, noise=noise)


SCHEDULES = {"flow": flow, **{p: lambda noise=0.8, p=p: ddim(p, noise) for p in ("epsilon", "v_prediction", "sample")}}


def images(count: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(count)]


def transition(schedule: NoiseSchedule, k: int, x: Tensor, p: Tensor) -> Any:
    """One image's next one, as torch.distributions has it; x, p: float64 of any shape."""
    mean = float(schedule.mean_x_K[k]) * x + float(schedule.mean_p_K[k]) * p
    return Independent(Normal(mean, float(schedule.std_K[k])), x.ndim)


# -------------------------------------------------------------------------------------------------- the distances


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_transition_kl_is_the_kl_of_torch_distributions_and_so_is_its_gradient(name: str, direction: str) -> None:
    schedule = SCHEDULES[name]()
    k = torch.tensor([0, 1, 2, 3, 3, 1])
    x, p, q = images(3, 6, 3, 4)
    weight = torch.tensor([0.5, 0.0, 2.0, 1.0, 0.25, 0.125])
    ours = p.float().requires_grad_()
    own = torch.empty(6)
    coefficient = coefficient_K(schedule, "transition_kl", supervised_K=NOISY)[k]
    loss = denoising_distance(ours, q.float(), coefficient, weight, per_position=own)

    theirs = p.clone().requires_grad_()
    kls = []
    for t in range(6):
        pair = [transition(schedule, int(k[t]), x[t], image) for image in (theirs[t], q[t])]
        kls.append(kl_divergence(*(pair if direction == "reverse" else pair[::-1])))
    wanted = (torch.stack(kls) * weight.double()).sum()
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        own.double(), torch.stack(kls).detach() * (weight != 0), rtol=1e-5, atol=1e-6
    )  # its own, unweighted; 0 where left out
    (got,), (right,) = torch.autograd.grad(loss, ours), torch.autograd.grad(wanted, theirs)
    torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-6)
    closed = weight.double()[:, None, None] * 2 * coefficient[:, None, None] * (p - q)
    torch.testing.assert_close(right, closed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noise", [0.3, 0.7, 1.2])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_flows_kl_is_equation_11_and_its_ode_equation_12(noise: float, shift: float) -> None:
    """(−Δ/2) (σ (1 − t) / 2t + 1/σ)², and ½ Δ². Without its −Δ it would be no KL."""
    schedule = flow(noise, shift)
    times = [*schedule.level_K.tolist(), 0.0]
    for k in range(STEPS):
        t, delta = times[k], times[k + 1] - times[k]
        sigma = noise * math.sqrt(t / (1 - (times[1] if t == 1 else t)))
        eq_11 = -delta / 2 * (sigma * (1 - t) / (2 * t) + 1 / sigma) ** 2
        assert float(coefficient_K(schedule, "transition_kl")[k]) == pytest.approx(eq_11, rel=1e-12)
        assert float(coefficient_K(flow(0.0, shift), "transition")[k]) == pytest.approx(delta**2 / 2, rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("divergence", ["transition", "x0", "velocity"])
def test_the_other_distances_are_between_what_they_name(name: str, divergence: Divergence) -> None:
    """Half the squared distance between next images, and those between denoised images and velocities."""
    schedule = SCHEDULES[name]()
    k, (x, p, q) = torch.arange(STEPS), images(3, STEPS, 3, 4)
    signal, level = schedule.signal_K[:, None, None], schedule.level_K[:, None, None]

    def meant(prediction: Tensor) -> Tensor:
        if divergence == "transition":
            return schedule.mean(k, x, prediction) / math.sqrt(2)
        x0 = schedule.denoised(k, x, prediction)
        if divergence == "x0":
            return x0
        noise = (x - signal * x0) / level
        return noise - x0 if name == "flow" else signal * noise - level * x0

    theirs = p.clone().requires_grad_()
    square = (meant(theirs) - meant(q)).square().flatten(1)
    wanted = (square.mean(1) if divergence in MEANS else square.sum(1)).mean()
    ours = p.float().requires_grad_()
    loss = denoising_distance(
        ours,
        q.float(),
        coefficient_K(schedule, divergence),
        torch.full((STEPS,), 1 / STEPS),
        per_dimension=divergence in MEANS,
    )
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)
    (got,), (right,) = torch.autograd.grad(loss, ours), torch.autograd.grad(wanted, theirs)
    torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("sigmas", ["even", "scheduler"])
def test_a_flows_velocity_counts_1_and_its_denoised_image_t_squared(shift: float, sigmas: str) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = schedule_of(scheduler, steps=17, sigmas=sigmas)  # type: ignore[arg-type]
    assert coefficient_K(schedule, "velocity").tolist() == [1.0] * 17
    assert coefficient_K(schedule, "x0").tolist() == schedule.level_K.square().tolist()
    assert coefficient_K(ddim("v_prediction"), "velocity").tolist() == pytest.approx([1.0] * STEPS, rel=1e-12)


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_a_distance_does_not_depend_on_the_parameterisation(divergence: Divergence) -> None:
    """One teacher and one student, written as epsilon, v and x0: one loss."""
    schedules = [ddim(name) for name in ("epsilon", "v_prediction", "sample")]
    k, (x, p, q) = torch.arange(STEPS), images(3, STEPS, 3, 4)
    first = schedules[0]
    losses = []
    for schedule in schedules:
        ours, theirs = (convert(image, x, k, first, schedule) for image in (p, q))
        coefficient = coefficient_K(schedule, divergence, supervised_K=NOISY)
        losses.append(float(denoising_distance(ours, theirs, coefficient, torch.ones(STEPS))))
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_equal_predictions_cost_nothing_and_pull_nowhere(dtype: torch.dtype, divergence: Divergence) -> None:
    (p,) = images(1, STEPS, 2, 3, dtype=torch.float32)
    ours = p.to(dtype).requires_grad_()
    loss = denoising_distance(ours, p.to(dtype), coefficient_K(flow(), divergence), torch.ones(STEPS))
    (gradient,) = torch.autograd.grad(loss, ours)
    assert float(loss.detach()) == 0
    assert not gradient.any()
    assert loss.dtype == torch.float32


def test_the_teacher_gets_no_gradient() -> None:
    p, q = (image.requires_grad_() for image in images(2, 2, 3))
    denoising_distance(p, q, torch.ones(2), torch.ones(2)).backward()
    assert p.grad is not None
    assert q.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["prediction", "target", "coefficient"])
@pytest.mark.parametrize("zero", ["weight", "coefficient"])
def test_what_is_left_out_cannot_spread(bad: float, where: str, zero: str) -> None:
    p, q = images(2, 3, 4, dtype=torch.float32)
    coefficient, weight = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.25, 1.0])
    kept = torch.tensor([True, False, True])
    clean = denoising_distance(p[kept], q[kept], coefficient[kept], weight[kept])
    {"prediction": p, "target": q, "coefficient": coefficient}[where][1] = bad
    if zero == "coefficient":
        coefficient[1] = 0
    else:
        weight[1] = 0
    ours, own = p.requires_grad_(), torch.full((3,), -1.0)
    loss = denoising_distance(ours, q, coefficient, weight, per_position=own)
    (gradient,) = torch.autograd.grad(loss, ours)
    torch.testing.assert_close(loss, clean)
    assert gradient.isfinite().all()
    assert not gradient[1].any()
    assert own.isfinite().all()
    assert float(own[1]) == 0


# ------------------------------------------------------------------------------------------------------ densities


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 10_000), name=st.sampled_from(list(SCHEDULES)), k=st.integers(0, STEPS - 2))
def test_log_density_is_that_of_torch_distributions_and_so_is_its_gradient(seed: int, name: str, k: int) -> None:
    schedule = SCHEDULES[name]()
    x, p, noise = images(3, 2, 3, 4, seed=seed)
    then = schedule.next(torch.full((2,), k), x, p, noise)
    q = p + 0.1  # another's prediction, too: the density of what it did not draw
    for prediction in (p, q):
        ours, theirs = prediction.float().requires_grad_(), prediction.clone().requires_grad_()
        got = log_density(schedule, torch.full((2,), k), x.float(), ours, then.float())
        wanted = torch.stack([transition(schedule, k, x[t], theirs[t]).log_prob(then[t]) for t in range(2)])
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-2)
        (slope,), (right,) = torch.autograd.grad(got.sum(), ours), torch.autograd.grad(wanted.sum(), theirs)
        torch.testing.assert_close(slope.double(), right, rtol=1e-2, atol=1e-2 * float(right.abs().max()))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_trajectory_has_the_density_under_which_it_was_drawn(name: str) -> None:
    """Drawn step by step with noise ε: −½‖ε‖² − d log std − d/2 log 2π, and the same number when scored at once."""
    schedule, batch = SCHEDULES[name](), 3
    x, *noises = images(STEPS, batch, 4, 8, 8, seed=3, dtype=torch.float32)
    states, predictions, nexts, drawn = [], [], [], []
    for k in range(STEPS - 1):
        at = torch.full((batch,), k)
        p = x.sin()
        then = schedule.next(at, x, p, noises[k])
        drawn.append(Independent(Normal(0.0, 1.0).expand((batch, 4, 8, 8)), 3).log_prob(noises[k]))
        drawn[-1] = drawn[-1] - 256 * math.log(float(schedule.std_K[k]))
        states.append(x)
        predictions.append(p)
        nexts.append(then)
        x = then
    k_T = torch.arange(STEPS - 1).repeat_interleave(batch)
    scored = log_density(schedule, k_T, torch.cat(states), torch.cat(predictions), torch.cat(nexts))
    torch.testing.assert_close(scored, torch.cat(drawn), rtol=1e-5, atol=1e-2)


def test_a_float64_reference_of_the_density_alone() -> None:
    mean, then = images(2, 3, 5, 2)
    std = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)
    wanted = torch.stack([Normal(mean[t], std[t]).log_prob(then[t]).sum() for t in range(3)])
    torch.testing.assert_close(transition_log_density(mean, then, std).double(), wanted, rtol=1e-5, atol=1e-4)


def test_what_adds_no_noise_has_neither_density_nor_kl() -> None:
    x, p, then = images(3, 2, 3)
    quiet, last = flow(0.0), ddim("epsilon")
    with pytest.raises(
        ConfigError, match=r"^rollout.noise: no step adds noise, and its transition has no density. Fix: set"
    ):
        log_density(quiet, torch.tensor([0, 1]), x, p, then)
    with pytest.raises(
        ConfigError,
        match=r"^rollout.noise: step 5 of 5 adds none, .* Fix: leave this step out, with a 0 in loss.step_weights$",
    ):
        log_density(last, torch.tensor([0, 4]), x, p, then)
    assert log_density(last, torch.tensor([0, 3]), x, p, then).isfinite().all()
    with pytest.raises(ConfigError, match=r"^rollout.noise: no step adds noise, and the KL of its transitions is inf"):
        coefficient_K(quiet, "transition_kl")
    with pytest.raises(
        ConfigError, match="step 5 of 5 adds none, and the KL of its transitions is infinite. Fix: leave"
    ):
        coefficient_K(last, "transition_kl")
    kept = coefficient_K(last, "transition_kl", supervised_K=NOISY)
    assert (kept > 0).tolist() == NOISY.tolist()


# ------------------------------------------------------------------------------------------------ policy gradients


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 10_000), clip=st.sampled_from([None, (0.2, 0.28), (0.5, 0.1), (1e-4, 1e-4)]))
def test_the_surrogate_equals_the_formula(seed: int, clip: tuple[float, float] | None) -> None:
    log_p, drift, advantage = images(3, 11, seed=seed)
    weight = torch.rand(11, generator=torch.Generator().manual_seed(seed))
    weight[::4] = 0
    ours, own = log_p.float().requires_grad_(), torch.empty(11)
    args = ((log_p - 0.5 * drift).float(), advantage.float(), weight)
    loss = transition_policy_gradient(ours, *args, clip=clip, per_position=own)
    theirs = ours.detach().double().requires_grad_()
    ratio = (theirs - args[0].double()).exp()
    gain = ratio * args[1]
    if clip:
        gain = torch.minimum(gain, ratio.clamp(1 - clip[0], 1 + clip[1]) * args[1])
    wanted = -(weight * gain).sum()
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own.double(), -gain.detach() * (weight != 0), rtol=1e-5, atol=1e-6)
    (got,), (right,) = torch.autograd.grad(loss, ours), torch.autograd.grad(wanted, theirs)
    torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", [None, (0.2, 0.2)])
@pytest.mark.parametrize(
    ("student", "rollout", "advantage"),
    [(math.nan, 0.0, 1.0), (0.0, -math.inf, 1.0), (math.inf, 0.0, 1.0), (0.0, math.nan, 1.0), (0.0, 0.0, math.nan)],
)
def test_a_transition_that_is_not_finite_is_left_out(
    student: float, rollout: float, advantage: float, clip: tuple[float, float] | None
) -> None:
    ours = torch.tensor([0.1, student], requires_grad=True)
    own = torch.empty(2)
    loss = transition_policy_gradient(
        ours,
        torch.tensor([0.0, rollout]),
        torch.tensor([2.0, advantage]),
        torch.ones(2),
        clip=clip,
        per_position=own,
    )
    (gradient,) = torch.autograd.grad(loss, ours)
    torch.testing.assert_close(loss.detach(), torch.tensor(-2 * math.exp(0.1)))
    torch.testing.assert_close(gradient, torch.tensor([-2 * math.exp(0.1), 0.0]))
    torch.testing.assert_close(own, torch.tensor([-2 * math.exp(0.1), 0.0]))


@pytest.mark.parametrize("drift", [-300.0, 300.0])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("clip", [None, (0.2, 0.2)])
def test_a_ratio_beyond_float32_stays_finite(drift: float, advantage: float, clip: tuple[float, float] | None) -> None:
    """A sum over many dimensions moves by hundreds of nats; clipped positions then have no gradient, and none NaN."""
    ours = torch.tensor([drift], requires_grad=True)
    loss = transition_policy_gradient(ours, torch.zeros(1), torch.tensor([advantage]), torch.ones(1), clip=clip)
    (gradient,) = torch.autograd.grad(loss, ours)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    if clip and drift * advantage > 0:
        assert float(loss.detach()) == pytest.approx(-1.2 if drift > 0 else 0.8)
        assert float(gradient) == 0


def quadrature(num: int = 40) -> tuple[Tensor, Tensor]:
    """Nodes and weights for a mean over N(0, 1), float64 [Q]."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("k", [0, 2, 3])
def test_a_detached_kl_as_its_own_steps_advantage_teaches_nothing(name: str, k: int) -> None:
    """One dimension, the student p = θ x. In the mean over the drawn next image:

    advantage −KL, detached: no gradient. The same plus KL differentiated as it stands: the KL's gradient, which
    the closed form has without the first term. Advantage log q(x') − log μ(x'): the KL's gradient as well.
    """
    schedule = SCHEDULES[name]()
    node_Q, weight_Q = quadrature()
    at, x, q = torch.full(node_Q.shape, k), torch.full((len(node_Q), 1), 0.8), torch.full((len(node_Q), 1), 0.5)
    theta = torch.tensor(1.1, requires_grad=True)
    p = theta * x
    then = schedule.next(at, x, p.detach(), node_Q[:, None].float())
    student = log_density(schedule, at, x, p, then)
    coefficient, own = coefficient_K(schedule, "transition_kl", supervised_K=NOISY)[at], torch.empty(len(node_Q))
    pathwise = denoising_distance(p, q, coefficient, weight_Q, per_position=own)
    teacher = log_density(schedule, at, x, q, then)

    def gradient(loss: Tensor) -> float:
        return float(torch.autograd.grad(loss, theta, retain_graph=True)[0])

    def surrogate(advantage: Tensor) -> Tensor:
        return transition_policy_gradient(student, student.detach(), advantage, weight_Q)

    true = theta.detach().double().requires_grad_()
    kl = kl_divergence(
        transition(schedule, k, x[0].double(), true * x[0].double()),
        transition(schedule, k, x[0].double(), q[0].double()),
    )
    wanted = float(torch.autograd.grad(kl, true)[0])
    scale = abs(wanted)
    assert scale > 1e-4
    assert gradient(surrogate(-own)) == pytest.approx(0, abs=1e-3 * scale)
    assert gradient(pathwise) == pytest.approx(wanted, rel=1e-4)
    assert gradient(surrogate(-own) + pathwise) == pytest.approx(wanted, rel=2e-3)
    assert gradient(surrogate(teacher - student.detach())) == pytest.approx(wanted, rel=2e-3)
    assert float((weight_Q * (student.detach() - teacher)).sum()) == pytest.approx(float(kl.detach()), rel=2e-3)
