"""Schedules against diffusers' own schedulers, step by step, and the refusals. Suffixes: K steps, T transitions."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from opd.diffusion.divergences import convert
from opd.diffusion.schedules import NoiseSchedule, Sigmas, schedule_of
from opd.errors import ConfigError, ModelError

PREDICTIONS = ("epsilon", "v_prediction", "sample")
SHAPE = (2, 3, 4, 5)


def images(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator, dtype=dtype) for _ in range(count)]


def at(k: int) -> Tensor:
    return torch.full((SHAPE[0],), k)


def ddim(**config: Any) -> DDIMScheduler:
    return DDIMScheduler(**{"clip_sample": False, **config})


def exact(scheduler: Any, steps: int) -> Any:
    """The scheduler with its tables in float64, so that rounding does not matter."""
    own = copy.deepcopy(scheduler)
    own.alphas_cumprod = own.alphas_cumprod.double()
    if isinstance(own, DDIMScheduler):
        own.final_alpha_cumprod = own.final_alpha_cumprod.double()
    else:
        own.one = own.one.double()
    own.set_timesteps(steps)
    return own


# ------------------------------------------------------------------------------------------------- flow matching


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("sigmas", ["even", "scheduler", [1.0, 0.6, 0.5, 0.05]])
@pytest.mark.parametrize("renoise", [False, True])
def test_a_flow_step_is_the_schedulers(shift: float, sigmas: Sigmas, renoise: bool) -> None:
    """Deterministic and ``stochastic_sampling``, from the first step to the last, on the scheduler's own states."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=renoise)
    schedule = schedule_of(theirs, steps=4, sigmas=sigmas, renoise=renoise)
    if sigmas == "scheduler":
        theirs.set_timesteps(4)
    else:
        theirs.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25] if sigmas == "even" else sigmas)
    assert schedule.num_steps == 4
    x, *predictions = images(5)
    for k, p in enumerate(predictions):
        assert float(schedule.time_K[k]) == float(theirs.timesteps[k])
        assert float(schedule.level_K[k]) == float(theirs.sigmas[k])
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(k))
        ours = schedule.next(at(k), x, p, noise)
        x = theirs.step(p, theirs.timesteps[k], x, generator=torch.Generator().manual_seed(k)).prev_sample
        torch.testing.assert_close(ours, x, rtol=1e-6, atol=2e-6)
    assert schedule.std_K.tolist() == pytest.approx([*theirs.sigmas[1:].tolist()] if renoise else [0.0] * 4)


@pytest.mark.parametrize("sigmas", ["even", "scheduler"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("noise", [0.3, 0.7, 1.0])
def test_the_noisy_flow_is_flow_grpos(shift: float, sigmas: Sigmas, noise: float) -> None:
    """μ = (1 + σ²Δ/2t) x + (1 + σ²(1 − t)/2t) Δ v and std = σ √−Δ, σ = a √(t / (1 − t)), as its code has them."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = schedule_of(scheduler, steps=5, sigmas=sigmas, noise=noise)
    if sigmas == "even":
        scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.6, 0.4, 0.2])
    else:
        scheduler.set_timesteps(5)
    times = [float(s) for s in scheduler.sigmas]
    for k, (t, then) in enumerate(pairwise(times)):
        delta = then - t
        sigma = noise * math.sqrt(t / (1 - (times[1] if t == 1 else t)))
        assert float(schedule.mean_x_K[k]) == pytest.approx(1 + sigma**2 * delta / (2 * t), rel=1e-12)
        assert float(schedule.mean_p_K[k]) == pytest.approx((1 + sigma**2 * (1 - t) / (2 * t)) * delta, rel=1e-12)
        assert float(schedule.std_K[k]) == pytest.approx(sigma * math.sqrt(-delta), rel=1e-12)
    assert times[0] == 1
    assert schedule.std_K.isfinite().all()


def test_the_noisy_flow_keeps_the_marginals_of_the_quiet_one() -> None:
    """With the exact velocity of data N(m, s²), many small noisy steps end where the quiet ones do: at m and s."""
    mean, deviation, steps = 0.5, 0.3, 4000
    for noise in (0.0, 0.7):
        schedule = schedule_of(FlowMatchEulerDiscreteScheduler(), steps=steps, sigmas="even", noise=noise)
        m, v = 0.0, 1.0
        for k in range(steps):
            t = float(schedule.level_K[k])
            total = (1 - t) ** 2 * deviation**2 + t**2  # x_t ~ N((1 − t) mean, total); E[ε − x0 | x] is affine in x
            slope = (t - (1 - t) * deviation**2) / total
            of_x = float(schedule.mean_x_K[k]) + float(schedule.mean_p_K[k]) * slope
            m = of_x * m + float(schedule.mean_p_K[k]) * (-mean - slope * (1 - t) * mean)
            v = of_x**2 * v + float(schedule.std_K[k]) ** 2
        assert m == pytest.approx(mean, abs=2e-3)
        assert math.sqrt(v) == pytest.approx(deviation, abs=0.02)


# -------------------------------------------------------------------------------------------------------- DDIM, DDPM


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize(("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)])
def test_a_ddim_step_is_the_schedulers(prediction: str, eta: float, to_one: bool, spacing: str, offset: int) -> None:
    scheduler = ddim(prediction_type=prediction, set_alpha_to_one=to_one, timestep_spacing=spacing, steps_offset=offset)
    schedule, theirs = schedule_of(scheduler, steps=6, sigmas="scheduler", noise=eta), exact(scheduler, 6)
    x, p, noise = images(3, dtype=torch.float64)
    for k, t in enumerate(theirs.timesteps):
        step = theirs.step(p, int(t), x, eta=eta, variance_noise=noise if eta else None)
        assert float(schedule.time_K[k]) == float(t)
        torch.testing.assert_close(schedule.next(at(k), x, p, noise), step.prev_sample, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(schedule.denoised(at(k), x, p), step.pred_original_sample, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddpm_with_noise_1_is_ancestral_sampling(prediction: str, spacing: str) -> None:
    """Diffusers writes that step in other coefficients. Its last step, at t = 0, adds no noise, or 1e-10 of it."""
    scheduler = DDPMScheduler(prediction_type=prediction, timestep_spacing=spacing, clip_sample=False)
    schedule, theirs = schedule_of(scheduler, steps=6, noise=1.0), exact(scheduler, 6)
    x, p = images(2, dtype=torch.float64)
    for k, t in enumerate(theirs.timesteps):
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        step = theirs.step(p, t, x, generator=torch.Generator().manual_seed(k))
        torch.testing.assert_close(schedule.next(at(k), x, p, noise), step.prev_sample, rtol=1e-9, atol=1e-9)
    assert float(schedule.std_K[-1]) == 0


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_renoising_goes_to_the_denoised_image_and_back(prediction: str) -> None:
    scheduler = ddim(prediction_type=prediction)
    schedule, quiet = schedule_of(scheduler, steps=4, renoise=True), schedule_of(scheduler, steps=4)
    x, p, noise = images(3, dtype=torch.float64)
    for k in range(4):
        x0 = quiet.denoised(at(k), x, p)
        wanted = quiet.noised(at(k + 1), x0, noise) if k < 3 else x0
        torch.testing.assert_close(schedule.next(at(k), x, p, noise), wanted, rtol=1e-10, atol=1e-10)


def test_a_schedule_without_signal_at_its_start_serves_v_prediction() -> None:
    scheduler = ddim(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    schedule = schedule_of(scheduler, steps=4, noise=1.0)
    assert float(schedule.signal_K[0]) == 0
    assert all(bool(table.isfinite().all()) for table in (schedule.mean_x_K, schedule.mean_p_K, schedule.std_K))
    with pytest.raises(ModelError, match="epsilon prediction says nothing"):
        schedule_of(ddim(rescale_betas_zero_snr=True, timestep_spacing="trailing"), steps=4)


# ------------------------------------------------------------------------------------- noising, denoising, converting


def schedules() -> dict[str, NoiseSchedule]:
    flow = schedule_of(FlowMatchEulerDiscreteScheduler(shift=3.0), steps=5)
    return {"velocity": flow, **{p: schedule_of(ddim(prediction_type=p), steps=5) for p in PREDICTIONS}}


@pytest.mark.parametrize("parameterisation", ["velocity", *PREDICTIONS])
def test_the_true_prediction_denoises_to_the_truth(parameterisation: str) -> None:
    """ε, x0 or v in closed form, of an image noised by us, gives that image back; ``prediction`` finds the same one."""
    schedule = schedules()[parameterisation]
    assert schedule.parameterisation == parameterisation
    x0, noise = images(2, dtype=torch.float64)
    for k in range(5):
        signal, level = float(schedule.signal_K[k]), float(schedule.level_K[k])
        truth = {
            "velocity": noise - x0,
            "epsilon": noise,
            "sample": x0,
            "v_prediction": signal * noise - level * x0,
        }[parameterisation]
        x = schedule.noised(at(k), x0, noise)
        torch.testing.assert_close(x, signal * x0 + level * noise)
        torch.testing.assert_close(schedule.denoised(at(k), x, truth), x0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(schedule.prediction(at(k), x, x0), truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("theirs", PREDICTIONS)
@pytest.mark.parametrize("ours", PREDICTIONS)
def test_conversions_are_exact(theirs: str, ours: str) -> None:
    """At every step at once, against diffusers-style formulas, and there and back."""
    a, b = schedules()[theirs], schedules()[ours]
    k = torch.arange(5)
    generator = torch.Generator().manual_seed(1)
    x, p = (torch.randn(5, 3, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    alpha, sigma = (table[:, None, None] for table in (a.signal_K, a.level_K))
    x0 = {"epsilon": (x - sigma * p) / alpha, "sample": p, "v_prediction": alpha * x - sigma * p}[theirs]
    noise = (x - alpha * x0) / sigma
    wanted = {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}[ours]
    got = convert(p, x, k, a, b)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(convert(got, x, k, b, a), p, rtol=1e-9, atol=1e-6)
    assert (got is p) == (theirs == ours)


def test_a_conversion_does_not_change_the_sampler() -> None:
    a, b = (schedule_of(ddim(prediction_type=p), steps=5, noise=0.5) for p in ("epsilon", "v_prediction"))
    x, p, noise = images(3, dtype=torch.float64)
    for k in range(5):
        converted = convert(p, x, at(k), a, b)
        torch.testing.assert_close(b.next(at(k), x, converted, noise), a.next(at(k), x, p, noise))


def test_a_teacher_of_another_schedule_is_refused() -> None:
    x, p = images(2)
    epsilon = schedules()["epsilon"]
    for other in (
        schedule_of(ddim(prediction_type="sample", beta_end=0.03), steps=5),
        schedule_of(ddim(prediction_type="sample"), steps=4),
        schedules()["velocity"],
    ):
        with pytest.raises(
            ModelError, match=r"^teacher: its schedule is another \(time .*, the student's .*\)\. Fix: give"
        ):
            convert(p, x, at(0), other, replace(epsilon, time_K=epsilon.time_K + 1))
    with pytest.raises(ModelError, match="schedule is another"):  # the same parameterisation does not excuse it
        convert(p, x, at(0), schedule_of(ddim(beta_end=0.03), steps=5), epsilon)


def test_a_conversion_by_zero_is_refused_at_its_step_only() -> None:
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    v, sample = (schedule_of(ddim(prediction_type=p, **config), steps=4) for p in ("v_prediction", "sample"))
    epsilon = replace(
        v, x0_x_K=1 / v.signal_K, x0_p_K=-v.level_K / v.signal_K, parameterisation="epsilon"
    )  # which schedule_of refuses
    x, p = images(2)
    for theirs, ours in ((epsilon, v), (v, epsilon), (epsilon, sample), (sample, epsilon)):
        with pytest.raises(ModelError, match="cannot become .* at step 1, where one of them says nothing"):
            convert(p, x, at(0), theirs, ours)
        assert convert(p, x, at(1), theirs, ours).isfinite().all()


# ------------------------------------------------------------------------------------------------- dtypes, refusals


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_helpers_compute_in_float32_at_least(dtype: torch.dtype) -> None:
    schedule = schedule_of(FlowMatchEulerDiscreteScheduler(shift=3.0), steps=5, noise=0.7)
    x, p, noise = (i.to(dtype) for i in images(3))
    k = torch.tensor([3, 0])
    wide = torch.promote_types(dtype, torch.float32)
    for got, wanted in (
        (schedule.mean(k, x, p), schedule.mean(k, x.double(), p.double())),
        (schedule.next(k, x, p, noise), schedule.next(k, x.double(), p.double(), noise.double())),
        (schedule.denoised(k, x, p), schedule.denoised(k, x.double(), p.double())),
    ):
        assert got.dtype == wide
        torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-6)
    assert schedule.time(k).tolist() == schedule.time_K[[3, 0]].tolist()


@pytest.mark.parametrize(
    "scheduler",
    [FlowMatchEulerDiscreteScheduler(shift=3.0), ddim(), DDPMScheduler(clip_sample=False)],
    ids=["flow", "ddim", "ddpm"],
)
def test_the_callers_scheduler_does_not_change(scheduler: Any) -> None:
    scheduler.set_timesteps(7)
    before = copy.deepcopy(scheduler.__dict__)
    schedule_of(scheduler, steps=3)
    for name, value in scheduler.__dict__.items():
        same = torch.equal(value, before[name]) if isinstance(value, Tensor) else value == before[name]
        assert same, name


def test_a_shift_that_is_set_later_is_used() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_shift(3.0)
    assert schedule_of(scheduler, steps=4).level_K.tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5])


FLOW = FlowMatchEulerDiscreteScheduler()
REFUSALS: list[tuple[Any, dict[str, Any], str]] = [
    (
        EulerDiscreteScheduler(),
        {},
        "^scheduler: the steps of EulerDiscreteScheduler are not supported.* DDIMScheduler$",
    ),
    (ddim(clip_sample=True), {}, "clip_sample clips .* set clip_sample=False in the scheduler's config$"),
    (ddim(thresholding=True), {}, "set thresholding=False in the scheduler's config$"),
    (DDPMScheduler(clip_sample=False, variance_type="learned_range"), {}, "variance_type learned_range predicts"),
    (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), {}, "set use_dynamic_shifting=False and a fixed"),
    (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), {}, "set invert_sigmas=False"),
    (ddim(), {"sigmas": [1.0, 0.5]}, "^rollout.sigmas: a list is for flow matching, not for DDIMScheduler"),
    (FLOW, {"sigmas": [1.0]}, r"^rollout.sigmas: \[1.0\] are not 2 numbers"),
    (FLOW, {"sigmas": [0.5, 0.9]}, "that fall from 1 towards 0. Fix: correct the list$"),
    (FLOW, {"sigmas": [1.0, 0.0]}, "that fall from 1 towards 0. Fix: correct the list$"),
    (FLOW, {"sigmas": [1.5, 0.5]}, "that fall from 1 towards 0. Fix: correct the list$"),
    (FLOW, {"sigmas": [math.nan, 0.5]}, "that fall from 1 towards 0. Fix: correct the list$"),
    (FLOW, {"sigmas": "evn"}, "^rollout.sigmas: there is no 'evn'"),
    (FLOW, {"steps": 0}, "^rollout.steps: 0 is less than 1. Fix: set 1 or more$"),
    (ddim(), {"steps": 1001}, "^rollout.steps: 1001 is above the model's 1000 times. Fix: lower it$"),
    (FLOW, {"noise": -0.1}, "^rollout.noise: -0.1 "),
    (FLOW, {"noise": math.nan}, "^rollout.noise: nan "),
    (ddim(), {"noise": 1.5}, "^rollout.noise: 1.5 is eta of DDIM, which is at most 1. Fix: lower it$"),
    (
        FLOW,
        {"noise": 0.7, "renoise": True},
        "^rollout.noise: 0.7 is given, and renoise adds all noise anew. Fix: set rollout.noise=0",
    ),
]


@pytest.mark.parametrize(("scheduler", "options", "message"), REFUSALS)
def test_refusals_name_the_key_and_the_fix(scheduler: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        schedule_of(scheduler, **{"steps": 2, **options})


def test_a_subclass_of_a_supported_scheduler_is_refused() -> None:
    class OwnScheduler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
        pass

    with pytest.raises(ConfigError, match="the steps of OwnScheduler are not supported"):
        schedule_of(OwnScheduler(), steps=2)
