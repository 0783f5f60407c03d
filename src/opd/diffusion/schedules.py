"""Noise schedules: the coefficients of each step of a sampler, as one table.

Every transition of these samplers is affine in the noisy image x and the denoiser's prediction p, with isotropic noise.
So is the denoised image:

    x' = mean_x · x + mean_p · p + std · ε,    x̂0 = x0_x · x + x0_p · p,    x = signal · x0 + level · noise

Flow matching and DDPM, deterministic and stochastic sampling, and all four parameterisations differ in these
coefficients only. Suffixes: K steps of the sampler, T transitions (an image at a step).
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

Parameterisation = Literal["velocity", "epsilon", "v_prediction", "sample"]
Sigmas = Literal["even", "scheduler"] | Sequence[float]

ALMOST_ONE = 1 - 1e-6  # a first sigma this close to 1 is a rounded 1, for which Flow-GRPO's noise is infinite


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """The K transitions of a sampler, from noise to image. The tables stay on the CPU for images on any device.

    Step k + 1 may start at another noise level than step k ends at: as in diffusers, DDIM with ``trailing`` or
    ``linspace`` spacing goes to t − T // K, which need not be the next time.
    """

    time_K: Tensor  # float32, the denoiser's time input
    level_K: Tensor  # float64, factor of the noise in x at the start of the step: sigma, or sqrt(1 − alpha_bar)
    signal_K: Tensor  # float64, factor of the clean image in x at the start of the step: 1 − sigma, or sqrt(alpha_bar)
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
        """float32 [T]: the denoiser's time input."""
        return gathered(self.time_K, k_T, torch.float32)

    def std(self, k_T: Tensor) -> Tensor:
        """float32 [T]: standard deviation of the noise that the step adds."""
        return gathered(self.std_K, k_T, torch.float32)

    def mean(self, k_T: Tensor, x_T: Tensor, p_T: Tensor) -> Tensor:
        """mean_x · x + mean_p · p, [T, ...] in at least float32: the mean of the next image."""
        return affine(k_T, (self.mean_x_K, x_T), (self.mean_p_K, p_T))

    def next(self, k_T: Tensor, x_T: Tensor, p_T: Tensor, noise_T: Tensor) -> Tensor:
        """mean + std · noise, [T, ...] in at least float32: one step of the sampler."""
        return affine(k_T, (self.mean_x_K, x_T), (self.mean_p_K, p_T), (self.std_K, noise_T))

    def denoised(self, k_T: Tensor, x_T: Tensor, p_T: Tensor) -> Tensor:
        """x̂0 = x0_x · x + x0_p · p, [T, ...] in at least float32: the clean image that the prediction implies."""
        return affine(k_T, (self.x0_x_K, x_T), (self.x0_p_K, p_T))

    def noised(self, k_T: Tensor, x0_T: Tensor, noise_T: Tensor) -> Tensor:
        """signal · x0 + level · noise, [T, ...] in at least float32: a clean image noised to the start of step k."""
        return affine(k_T, (self.signal_K, x0_T), (self.level_K, noise_T))

    def prediction(self, k_T: Tensor, x_T: Tensor, x0_T: Tensor) -> Tensor:
        """(x0 − x0_x · x) / x0_p, [T, ...] in at least float32: the prediction for which ``denoised`` is x0."""
        return affine(k_T, (-self.x0_x_K / self.x0_p_K, x_T), (1 / self.x0_p_K, x0_T))


def gathered(table_K: Tensor, k_T: Tensor, dtype: torch.dtype) -> Tensor:
    return table_K.to(dtype).to(k_T.device)[k_T]  # dtype first: not every device has float64


def affine(k_T: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """Σ_i a_i[k] · x_i, in the widest dtype of the images and at least float32."""
    dtype = torch.float32
    for _, image_T in terms:
        dtype = torch.promote_types(dtype, image_T.dtype)
    shape = (-1, *(1,) * (terms[0][1].ndim - 1))
    parts = [gathered(table_K, k_T, dtype).view(shape) * image_T.to(dtype) for table_K, image_T in terms]
    return torch.stack(parts).sum(0) if len(parts) > 2 else parts[0] + parts[1]


def schedule_of(
    scheduler: Any, *, steps: int, sigmas: Sigmas = "even", noise: float = 0.0, renoise: bool = False
) -> NoiseSchedule:
    """The noise schedule of a diffusers scheduler, which stays unchanged.

    Args:
        scheduler: FlowMatchEulerDiscreteScheduler, DDIMScheduler or DDPMScheduler. Its spacing, shift and prediction
            type are used; ``renoise`` and ``noise`` replace its ``stochastic_sampling`` and ``variance_type``.
        steps: K ≥ 1.
        sigmas: for flow matching, before the scheduler's shift as in ``set_timesteps``: ``even`` for 1, …, 1/K,
            ``scheduler`` for its own (which end in a tiny step if it has a shift), or K falling numbers. DDIM and DDPM
            take the times of their ``timestep_spacing``.
        noise: 0 samples deterministically. Flow matching: a of Flow-GRPO's SDE, σ_t = a √(t / (1 − t)). DDIM and
            DDPM: eta of DDIM, at most 1; 1 is DDPM's ancestral sampling.
        renoise: jump to x̂0 and add fresh noise, as few-step samplers of distilled models do. Not with ``noise``.

    Raises:
        ConfigError: an unsupported scheduler, or arguments that exclude each other.
        ModelError: epsilon prediction at a step without signal.

    Source: diffusers 0.42; Flow-GRPO, arXiv 2505.05470; DDIM, arXiv 2010.02502.
    Proof: tests/diffusion/test_schedules.py.
    """
    if steps < 1:
        raise ConfigError(f"rollout.steps: {steps} is less than 1. Fix: set 1 or more")
    if not (math.isfinite(noise) and noise >= 0):
        raise ConfigError(f"rollout.noise: {noise} is not a finite number of 0 or more. Fix: set such a number")
    if renoise and noise:
        raise ConfigError(f"rollout.noise: {noise} is given, and renoise adds all noise anew. Fix: set rollout.noise=0")
    name = type(scheduler).__name__  # the exact class: a subclass may step differently
    if name == "FlowMatchEulerDiscreteScheduler":
        return flow_matching(scheduler, steps=steps, sigmas=sigmas, noise=noise, renoise=renoise)
    if name in ("DDIMScheduler", "DDPMScheduler"):
        if sigmas not in ("even", "scheduler"):
            raise ConfigError(f"rollout.sigmas: a list is for flow matching, not for {name}. Fix: set it to scheduler")
        return variance_preserving(scheduler, steps=steps, noise=noise, renoise=renoise)
    raise ConfigError(
        f"scheduler: the steps of {name} are not supported. Fix: load the pipeline with "
        "FlowMatchEulerDiscreteScheduler or DDIMScheduler"
    )


def flow_matching(scheduler: Any, *, steps: int, sigmas: Sigmas, noise: float, renoise: bool) -> NoiseSchedule:
    """x = (1 − s) x0 + s ε and p = ε − x0: Euler's step, Flow-GRPO's SDE, or renoising."""
    time_K, sigma_K1 = flow_levels(scheduler, steps, sigmas)
    sigma_K, next_K = sigma_K1[:-1], sigma_K1[1:]
    delta_K, ones_K = next_K - sigma_K, torch.ones_like(sigma_K)
    if renoise:
        mean_x_K, mean_p_K, std_K = 1 - next_K, -(1 - next_K) * sigma_K, next_K
    else:
        # like Flow-GRPO's code: at t = 1, the noise alone uses 1 − t of the second time
        remaining_K = 1 - torch.where(sigma_K > ALMOST_ONE, next_K[0], sigma_K)
        variance_K = noise**2 * sigma_K / remaining_K
        drift_K = variance_K * delta_K / (2 * sigma_K)
        mean_x_K, mean_p_K = ones_K + drift_K, delta_K + drift_K * (1 - sigma_K)
        std_K = (variance_K * -delta_K).sqrt()
    return NoiseSchedule(time_K, sigma_K, 1 - sigma_K, mean_x_K, mean_p_K, std_K, ones_K, -sigma_K, "velocity")


def flow_levels(scheduler: Any, steps: int, sigmas: Sigmas) -> tuple[Tensor, Tensor]:
    """Times float32 [K] and noise levels float64 [K + 1], falling to 0."""
    for option, why in (("use_dynamic_shifting", "depends on the image size"), ("invert_sigmas", "rises from 0 to 1")):
        if getattr(scheduler.config, option):
            raise ConfigError(f"scheduler: its schedule {why}. Fix: set {option}=False and a fixed shift in its config")
    own = copy.deepcopy(scheduler)
    if sigmas == "scheduler":
        own.set_timesteps(steps)
    else:
        own.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps) if sigmas == "even" else checked(sigmas, steps))
    sigma_K1 = own.sigmas.cpu().double()
    if not bool((sigma_K1.diff() < 0).all()):
        raise ConfigError(
            f"rollout.steps: noise levels of {steps} steps do not fall (got {sigma_K1.tolist()}). Fix: set fewer steps"
        )
    return own.timesteps.cpu().float(), sigma_K1


def checked(sigmas: Sequence[float] | str, steps: int) -> list[float]:
    if isinstance(sigmas, str):
        raise ConfigError(f"rollout.sigmas: there is no {sigmas!r}. Fix: set even, scheduler or a list of numbers")
    given = [float(s) for s in sigmas]
    falling = all(a > b for a, b in zip([1.0 + 1e-9, *given], [*given, 0.0], strict=True))
    if len(given) != steps or not falling:
        raise ConfigError(
            f"rollout.sigmas: {given} are not {steps} numbers (rollout.steps) that fall from 1 towards 0. Fix: correct "
            "the list"
        )
    return given


def variance_preserving(scheduler: Any, *, steps: int, noise: float, renoise: bool) -> NoiseSchedule:
    """x = √ᾱ x0 + √(1 − ᾱ) ε: DDIM's step with eta = noise, or renoising."""
    check_affine(scheduler.config)
    if noise > 1:
        raise ConfigError(f"rollout.noise: {noise} is eta of DDIM, which is at most 1. Fix: lower it")
    if steps > scheduler.config.num_train_timesteps:
        raise ConfigError(
            f"rollout.steps: {steps} is above the model's {scheduler.config.num_train_timesteps} times. Fix: lower it"
        )
    time_K, alpha_K, next_K = diffusion_levels(scheduler, steps)
    signal_K, level_K = alpha_K.sqrt(), (1 - alpha_K).sqrt()
    parameterisation: Parameterisation = scheduler.config.prediction_type
    if parameterisation == "epsilon" and not bool((signal_K > 0).all()):
        raise ModelError(
            "scheduler: epsilon prediction says nothing about the image at a step without signal. "
            "Fix: set rescale_betas_zero_snr=False in its config"
        )
    x0_x_K, x0_p_K = denoising_table(parameterisation, signal_K, level_K)
    # share of the noise after the step that is fresh; the rest is the predicted noise, (x − signal x̂0) / level
    fresh_K = torch.ones_like(alpha_K) if renoise else noise**2 * (1 - alpha_K / next_K) / (1 - alpha_K)
    std_K, towards_K = ((1 - next_K) * fresh_K).sqrt(), ((1 - next_K) * (1 - fresh_K)).sqrt()
    mean_x_K = next_K.sqrt() * x0_x_K + towards_K * (1 - signal_K * x0_x_K) / level_K
    mean_p_K = next_K.sqrt() * x0_p_K - towards_K * signal_K * x0_p_K / level_K
    return NoiseSchedule(time_K, level_K, signal_K, mean_x_K, mean_p_K, std_K, x0_x_K, x0_p_K, parameterisation)


def check_affine(config: Any) -> None:
    for option in ("clip_sample", "thresholding"):
        if getattr(config, option):
            raise ConfigError(
                f"scheduler: {option} clips the denoised image, so a transition has no Gaussian density. "
                f"Fix: set {option}=False in the scheduler's config"
            )
    if str(getattr(config, "variance_type", "")).startswith("learned"):
        raise ConfigError(
            f"scheduler: variance_type {config.variance_type} predicts the noise of a step too. "
            "Fix: load a model with a fixed variance"
        )


def diffusion_levels(scheduler: Any, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Times float32 [K], and ᾱ at the start and the end of each step, float64 [K], as in the scheduler's ``step``."""
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
    raise ModelError(
        f"scheduler: prediction_type {parameterisation} is not supported. Fix: take epsilon, v_prediction or sample"
    )
