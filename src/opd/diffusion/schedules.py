"""What a sampler does at each of its steps, as one table of numbers.

Every transition of the samplers here is affine in the noisy image x and the denoiser's prediction p, with isotropic
noise, and so is the denoised image:

    x' = mean_x · x + mean_p · p + std · ε,    x̂0 = x0_x · x + x0_p · p,    x = signal · x0 + level · noise

Flow matching and DDPM, deterministic and stochastic sampling and all four parameterisations differ in these numbers
alone. Suffixes: K steps of the sampler, T transitions (an image at a step).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from opd.errors import ConfigError, ModelError
from opd.losses.denoising import transition_log_density

Parameterisation = Literal["velocity", "epsilon", "v_prediction", "sample"]
Divergence = Literal["transition_kl", "transition", "x0", "velocity"]
Sigmas = Literal["even", "scheduler"] | Sequence[float]

MEANS = frozenset({"x0", "velocity"})
"""Divergences that are a mean over an image's dimensions; the others are sums: ``denoising_distance``."""

ALMOST_ONE = 1 - 1e-6  # a first sigma this close to 1 is a rounded 1, where Flow-GRPO's noise would be infinite


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """The K transitions of a sampler, from noise to image. The tables stay on the CPU, whatever the images' device.

    The level at which step k + 1 starts need not be that at which step k ends: DDIM with ``trailing`` or ``linspace``
    spacing goes to t − T // K in diffusers, whatever the next time is, and so here.
    """

    time_K: Tensor  # float32, what the denoiser is told
    level_K: Tensor  # float64, factor of the noise in x where the step starts: sigma, or sqrt(1 − alpha_bar)
    signal_K: Tensor  # float64, factor of the clean image in x where the step starts: 1 − sigma, or sqrt(alpha_bar)
    mean_x_K: Tensor  # float64, and the next four
    mean_p_K: Tensor
    std_K: Tensor
    x0_x_K: Tensor
    x0_p_K: Tensor
    parameterisation: Parameterisation

    @property
    def num_steps(self) -> int:
        return len(self.time_K)

    def time(self, k_T: Tensor) -> Tensor:
        """float32 [T]: what the denoiser is told."""
        return gathered(self.time_K, k_T, torch.float32)

    def std(self, k_T: Tensor) -> Tensor:
        """float32 [T]: the noise that the step adds."""
        return gathered(self.std_K, k_T, torch.float32)

    def mean(self, k_T: Tensor, x_T: Tensor, p_T: Tensor) -> Tensor:
        """mean_x · x + mean_p · p, [T, ...] of float32 at least: where the step goes but for its noise."""
        return affine(k_T, (self.mean_x_K, x_T), (self.mean_p_K, p_T))

    def next(self, k_T: Tensor, x_T: Tensor, p_T: Tensor, noise_T: Tensor) -> Tensor:
        """mean + std · noise, [T, ...] of float32 at least: one step of the sampler."""
        return affine(k_T, (self.mean_x_K, x_T), (self.mean_p_K, p_T), (self.std_K, noise_T))

    def denoised(self, k_T: Tensor, x_T: Tensor, p_T: Tensor) -> Tensor:
        """x̂0 = x0_x · x + x0_p · p, [T, ...] of float32 at least: the clean image that the prediction implies."""
        return affine(k_T, (self.x0_x_K, x_T), (self.x0_p_K, p_T))

    def noised(self, k_T: Tensor, x0_T: Tensor, noise_T: Tensor) -> Tensor:
        """signal · x0 + level · noise, [T, ...] of float32 at least: a clean image at the noise where step k starts."""
        return affine(k_T, (self.signal_K, x0_T), (self.level_K, noise_T))

    def prediction(self, k_T: Tensor, x_T: Tensor, x0_T: Tensor) -> Tensor:
        """(x0 − x0_x · x) / x0_p, [T, ...] of float32 at least: what a denoiser must say for ``denoised`` to be x0."""
        return affine(k_T, (-self.x0_x_K / self.x0_p_K, x_T), (1 / self.x0_p_K, x0_T))


def gathered(table_K: Tensor, k_T: Tensor, dtype: torch.dtype) -> Tensor:
    return table_K.to(dtype).to(k_T.device)[k_T]  # the type first: not every device has float64


def affine(k_T: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """Σ_i a_i[k] · x_i in the widest type of the images, float32 at least."""
    dtype = torch.float32
    for _, image_T in terms:
        dtype = torch.promote_types(dtype, image_T.dtype)
    shape = (-1, *(1,) * (terms[0][1].ndim - 1))
    parts = [gathered(table_K, k_T, dtype).view(shape) * image_T.to(dtype) for table_K, image_T in terms]
    return torch.stack(parts).sum(0) if len(parts) > 2 else parts[0] + parts[1]


def schedule_of(
    scheduler: Any, *, steps: int, sigmas: Sigmas = "even", noise: float = 0.0, renoise: bool = False
) -> NoiseSchedule:
    """The schedule of a diffusers scheduler, which is left as it was.

    Args:
        scheduler: FlowMatchEulerDiscreteScheduler, DDIMScheduler or DDPMScheduler. Its spacing, shift and prediction
            type count; its ``stochastic_sampling`` and ``variance_type`` do not: that is ``renoise`` and ``noise``.
        steps: K ≥ 1.
        sigmas: of flow matching before the scheduler's shift, as in its ``set_timesteps``: ``even`` for 1, …, 1/K,
            ``scheduler`` for its own, which with a shift end in a tiny step, or K falling numbers. The others have
            the times of their ``timestep_spacing`` alone.
        noise: 0 samples deterministically. Flow matching: a of Flow-GRPO's SDE, σ_t = a √(t / (1 − t)). DDIM and
            DDPM: eta of DDIM, at most 1, where it is DDPM's ancestral sampling.
        renoise: go to x̂0 and noise it afresh: the few-step samplers of distilled models. Not together with noise.

    Raises:
        ConfigError: a scheduler that has no such schedule, or values that do not go together.
        ModelError: epsilon prediction at a step without signal.

    Source: diffusers 0.42; Flow-GRPO, arXiv 2505.05470; DDIM, arXiv 2010.02502.
    Proof: tests/diffusion/test_schedules.py.
    """
    if steps < 1:
        raise ConfigError(f"rollout.steps: {steps} is less than 1")
    if not (math.isfinite(noise) and noise >= 0):
        raise ConfigError(f"rollout.noise: {noise} is no number of 0 or more")
    if renoise and noise:
        raise ConfigError(f"rollout.noise: {noise} goes with renoise: false; noise is drawn afresh there, so set 0")
    name = type(scheduler).__name__  # the exact class: one derived from it may step otherwise
    if name == "FlowMatchEulerDiscreteScheduler":
        return flow_matching(scheduler, steps=steps, sigmas=sigmas, noise=noise, renoise=renoise)
    if name in ("DDIMScheduler", "DDPMScheduler"):
        if sigmas not in ("even", "scheduler"):
            raise ConfigError(f"rollout.sigmas: a list is for flow matching, not for {name}; set it to scheduler")
        return variance_preserving(scheduler, steps=steps, noise=noise, renoise=renoise)
    raise ConfigError(
        f"scheduler: the steps of {name} are not known here; load the pipeline with FlowMatchEulerDiscreteScheduler or "
        "DDIMScheduler"
    )


def flow_matching(scheduler: Any, *, steps: int, sigmas: Sigmas, noise: float, renoise: bool) -> NoiseSchedule:
    """x = (1 − s) x0 + s ε and p = ε − x0: Euler's step, Flow-GRPO's SDE, or renoising."""
    time_K, sigma_K1 = flow_levels(scheduler, steps, sigmas)
    sigma_K, next_K = sigma_K1[:-1], sigma_K1[1:]
    delta_K, ones_K = next_K - sigma_K, torch.ones_like(sigma_K)
    if renoise:
        mean_x_K, mean_p_K, std_K = 1 - next_K, -(1 - next_K) * sigma_K, next_K
    else:
        # at t = 1 Flow-GRPO's code takes 1 − t of the second time, and for the noise alone
        remaining_K = 1 - torch.where(sigma_K > ALMOST_ONE, next_K[0], sigma_K)
        variance_K = noise**2 * sigma_K / remaining_K
        drift_K = variance_K * delta_K / (2 * sigma_K)
        mean_x_K, mean_p_K = ones_K + drift_K, delta_K + drift_K * (1 - sigma_K)
        std_K = (variance_K * -delta_K).sqrt()
    return NoiseSchedule(time_K, sigma_K, 1 - sigma_K, mean_x_K, mean_p_K, std_K, ones_K, -sigma_K, "velocity")


def flow_levels(scheduler: Any, steps: int, sigmas: Sigmas) -> tuple[Tensor, Tensor]:
    """Times float32 [K] and noise levels float64 [K + 1], falling to 0."""
    for option, why in (("use_dynamic_shifting", "is for one size of image"), ("invert_sigmas", "runs from 0 to 1")):
        if getattr(scheduler.config, option):
            raise ConfigError(f"scheduler: its schedule {why}; set {option}=False and a fixed shift in its config")
    own = copy.deepcopy(scheduler)
    if sigmas == "scheduler":
        own.set_timesteps(steps)
    else:
        own.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps) if sigmas == "even" else checked(sigmas, steps))
    sigma_K1 = own.sigmas.cpu().double()
    if not bool((sigma_K1.diff() < 0).all()):
        raise ConfigError(f"rollout.steps: {steps} steps of this scheduler do not fall: {sigma_K1.tolist()}")
    return own.timesteps.cpu().float(), sigma_K1


def checked(sigmas: Sequence[float] | str, steps: int) -> list[float]:
    if isinstance(sigmas, str):
        raise ConfigError(f"rollout.sigmas: {sigmas!r} is neither even nor scheduler nor a list")
    given = [float(s) for s in sigmas]
    falling = all(a > b for a, b in zip([1.0 + 1e-9, *given], [*given, 0.0], strict=True))
    if len(given) != steps or not falling:
        raise ConfigError(f"rollout.sigmas: {given} are not {steps} numbers (rollout.steps) that fall from 1 towards 0")
    return given


def variance_preserving(scheduler: Any, *, steps: int, noise: float, renoise: bool) -> NoiseSchedule:
    """x = √ᾱ x0 + √(1 − ᾱ) ε: DDIM's step with eta = noise, or renoising."""
    check_affine(scheduler.config)
    if noise > 1:
        raise ConfigError(f"rollout.noise: {noise} is eta of DDIM, which is at most 1")
    if steps > scheduler.config.num_train_timesteps:
        raise ConfigError(f"rollout.steps: {steps}, where the model has {scheduler.config.num_train_timesteps} times")
    time_K, alpha_K, next_K = diffusion_levels(scheduler, steps)
    signal_K, level_K = alpha_K.sqrt(), (1 - alpha_K).sqrt()
    parameterisation: Parameterisation = scheduler.config.prediction_type
    if parameterisation == "epsilon" and not bool((signal_K > 0).all()):
        raise ModelError(
            "scheduler: epsilon prediction says nothing of the image at a step without signal; "
            "set rescale_betas_zero_snr=False in its config"
        )
    x0_x_K, x0_p_K = denoising_table(parameterisation, signal_K, level_K)
    # of what is noise after the step, the share that is drawn; the rest goes on as predicted, (x − signal x̂0) / level
    fresh_K = torch.ones_like(alpha_K) if renoise else noise**2 * (1 - alpha_K / next_K) / (1 - alpha_K)
    std_K, towards_K = ((1 - next_K) * fresh_K).sqrt(), ((1 - next_K) * (1 - fresh_K)).sqrt()
    mean_x_K = next_K.sqrt() * x0_x_K + towards_K * (1 - signal_K * x0_x_K) / level_K
    mean_p_K = next_K.sqrt() * x0_p_K - towards_K * signal_K * x0_p_K / level_K
    return NoiseSchedule(time_K, level_K, signal_K, mean_x_K, mean_p_K, std_K, x0_x_K, x0_p_K, parameterisation)


def check_affine(config: Any) -> None:
    for option in ("clip_sample", "thresholding"):
        if getattr(config, option):
            raise ConfigError(
                f"scheduler: {option} clips the denoised image, and what is clipped has no Gaussian density; "
                f"set {option}=False in the scheduler's config"
            )
    if str(getattr(config, "variance_type", "")).startswith("learned"):
        raise ConfigError(
            f"scheduler: variance_type {config.variance_type} predicts the noise of a step too; "
            "load a model with a fixed variance"
        )


def diffusion_levels(scheduler: Any, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Times float32 [K], ᾱ where each step starts and where it ends, float64 [K], as in the scheduler's ``step``."""
    own = copy.deepcopy(scheduler)
    own.set_timesteps(steps)
    time_K = own.timesteps.cpu()
    if type(scheduler).__name__ == "DDIMScheduler":
        next_K, last = time_K - own.config.num_train_timesteps // steps, own.final_alpha_cumprod
    else:
        next_K, last = torch.cat([time_K[1:], time_K.new_tensor([-1])]), own.one
    alphas = own.alphas_cumprod.cpu().double()
    return time_K.float(), alphas[time_K], torch.where(next_K >= 0, alphas[next_K.clamp_min(0)], float(last))


def denoising_table(parameterisation: Parameterisation, signal_K: Tensor, level_K: Tensor) -> tuple[Tensor, Tensor]:
    """x0_x and x0_p, float64 [K] each, of a variance-preserving schedule: signal² + level² = 1."""
    if parameterisation == "epsilon":
        return 1 / signal_K, -level_K / signal_K
    if parameterisation == "v_prediction":
        return signal_K, -level_K
    if parameterisation == "sample":
        return torch.zeros_like(signal_K), torch.ones_like(signal_K)
    raise ModelError(f"scheduler: prediction_type {parameterisation} is none of epsilon, v_prediction and sample")


def log_density(schedule: NoiseSchedule, k_T: Tensor, x_T: Tensor, p_T: Tensor, next_T: Tensor) -> Tensor:
    """log N(x'; mean(x, p), std²), summed over an image's dimensions: float32 [T], nats; gradient flows to p.

    Args:
        schedule: with noise.
        k_T: int64 [T], which step.
        x_T: [T, ...], where the step started.
        p_T: [T, ...], the prediction there.
        next_T: [T, ...], where it went.

    Raises:
        ConfigError: one of the steps adds no noise.

    Proof: tests/fidelity/test_denoising.py.
    """
    silent_K = schedule.std_K == 0
    if bool(silent_K.any()) and bool(gathered(silent_K, k_T, torch.bool).any()):
        raise no_noise(silent_K, "its transition has no density")
    return transition_log_density(schedule.mean(k_T, x_T, p_T), next_T, schedule.std(k_T))


def no_noise(silent_K: Tensor, what: str) -> ConfigError:
    steps = [k + 1 for k in silent_K.nonzero()[:, 0].tolist()]
    if len(steps) == len(silent_K):
        return ConfigError(f"rollout.noise: no step adds noise, and {what}; set it above 0 (0.7 for flow, 1 for DDIM)")
    return ConfigError(
        f"rollout.noise: step {steps[0]} of {len(silent_K)} adds none, and {what}; leave this step out, with a 0 in "
        "loss.step_weights"
    )


def convert(prediction_T: Tensor, x_T: Tensor, k_T: Tensor, theirs: NoiseSchedule, ours: NoiseSchedule) -> Tensor:
    """Their prediction at x in our parameterisation: the one that implies the same denoised image.

    Args:
        prediction_T: [T, ...] in ``theirs.parameterisation``; gradient flows.
        x_T: [T, ...], the noisy images.
        k_T: int64 [T], which step.
        theirs: must start its steps at our times and noise levels.
        ours: where to.

    Returns:
        [T, ...] of float32 at least; the prediction itself where the parameterisations agree.

    Raises:
        ModelError: another schedule, or a step at which one of the two says nothing of the denoised image.

    Proof: tests/diffusion/test_schedules.py.
    """
    for name in ("time_K", "level_K", "signal_K"):
        a, b = getattr(theirs, name), getattr(ours, name)
        if a.shape != b.shape or not torch.allclose(a, b, rtol=1e-5, atol=1e-6):
            raise ModelError(
                f"teacher: its schedule is another ({name[:-2]} {a.tolist()}, the student's {b.tolist()}); "
                "give it the student's scheduler and steps, or take a teacher that was trained on them"
            )
    if theirs.parameterisation == ours.parameterisation:
        return prediction_T
    factor_K, of_x_K = theirs.x0_p_K / ours.x0_p_K, (theirs.x0_x_K - ours.x0_x_K) / ours.x0_p_K
    undefined_K = ~(factor_K.isfinite() & of_x_K.isfinite())
    if bool(undefined_K.any()) and bool(gathered(undefined_K, k_T, torch.bool).any()):
        raise ModelError(
            f"teacher: its {theirs.parameterisation} cannot become {ours.parameterisation} at step "
            f"{int(undefined_K.nonzero()[0]) + 1}, where one of them says nothing of the image; leave this step out"
        )
    return affine(k_T, (factor_K, prediction_T), (of_x_K, x_T))


def coefficient_K(schedule: NoiseSchedule, divergence: Divergence, *, supervised_K: Tensor | None = None) -> Tensor:
    """c_k of the loss c_k ‖p_student − p_teacher‖², float64 [K], for two predictions at the same noisy image.

    - ``transition_kl``: mean_p² / 2 std², the KL between the two Gaussian transitions. They have one covariance, so
      the KL is the same in both directions. Its 1 / std² has the −Δt that some released code leaves out.
    - ``transition``: mean_p² / 2, half the squared distance between the next images; what is left of std² · KL
      without noise.
    - ``x0``: x0_p², the squared distance between the denoised images.
    - ``velocity``: (dv / dp)², the squared distance between velocities: v = ε − x0 of flow matching, v = √ᾱ ε −
      √(1 − ᾱ) x0 of DDPM.

    The first two are sums over an image's dimensions, those in ``MEANS`` are means: ``denoising_distance`` divides.

    Args:
        schedule: of the student; the teacher's prediction is in its parameterisation and under its noise.
        divergence: which.
        supervised_K: bool [K], the steps that the loss counts; others have a coefficient of 0. None: all.

    Raises:
        ConfigError: ``transition_kl`` at a supervised step that adds no noise.

    Source: DiffusionOPD, arXiv 2605.15055, equations 11 and 12; D-OPSD, arXiv 2605.05204.
    Proof: tests/fidelity/test_denoising.py.
    """
    used_K = torch.ones_like(schedule.std_K, dtype=torch.bool) if supervised_K is None else supervised_K
    if divergence == "transition_kl":
        silent_K = (schedule.std_K == 0) & used_K
        if bool(silent_K.any()):
            raise no_noise(silent_K, "the KL of its transitions is infinite")
        all_K = schedule.mean_p_K.square() / (2 * schedule.std_K.square())
    elif divergence == "transition":
        all_K = schedule.mean_p_K.square() / 2
    elif divergence == "x0":
        all_K = schedule.x0_p_K.square()
    else:
        all_K = velocity_slope_K(schedule).square()
    return torch.where(used_K, all_K, 0.0)


def velocity_slope_K(schedule: NoiseSchedule) -> Tensor:
    """dv / dp at fixed x, float64 [K], of v = ε − x0 (flow matching) or v = signal ε − level x0 (DDPM).

    With ε = (x − signal x0) / level, dv / dx0 is −(signal + level) / level or −(signal² + level²) / level.
    """
    power = 1 if schedule.parameterisation == "velocity" else 2
    return -(schedule.signal_K**power + schedule.level_K**power) * (schedule.x0_p_K / schedule.level_K)
