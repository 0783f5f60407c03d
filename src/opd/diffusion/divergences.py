"""Divergences between two predictions at one noisy image, densities of transitions, and conversion of predictions.

Suffixes: K steps of the sampler, T transitions (an image at a step).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from opd.diffusion.schedules import NoiseSchedule, affine, gathered
from opd.errors import ConfigError, ModelError
from opd.losses.denoising import transition_log_density

Divergence = Literal["transition_kl", "transition", "x0", "velocity"]

MEANS = frozenset({"x0", "velocity"})
"""Divergences that are means over an image's dimensions; the others are sums (see ``denoising_distance``)."""


def log_density(schedule: NoiseSchedule, k_T: Tensor, x_T: Tensor, p_T: Tensor, next_T: Tensor) -> Tensor:
    """log N(x'; mean(x, p), std²), summed over an image's dimensions: float32 [T], nats; gradient flows to p.

    Args:
        schedule: adds noise at these steps.
        k_T: int64 [T], index of the step.
        x_T: [T, ...], the images before the step.
        p_T: [T, ...], the predictions for them.
        next_T: [T, ...], the images after the step.

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
        return ConfigError(
            f"rollout.noise: no step adds noise, and {what}. Fix: set it above 0 (0.7 for flow, 1 for DDIM)"
        )
    return ConfigError(
        f"rollout.noise: step {steps[0]} of {len(silent_K)} adds none, and {what}. Fix: leave this step out, with a 0 "
        "in loss.step_weights"
    )


def convert(prediction_T: Tensor, x_T: Tensor, k_T: Tensor, theirs: NoiseSchedule, ours: NoiseSchedule) -> Tensor:
    """A prediction at x in another parameterisation: the one that implies the same denoised image.

    Args:
        prediction_T: [T, ...] in ``theirs.parameterisation``; gradient flows.
        x_T: [T, ...], the noisy images.
        k_T: int64 [T], index of the step.
        theirs: the prediction's schedule; its steps start at the times and noise levels of ``ours``.
        ours: the schedule whose parameterisation is returned.

    Returns:
        [T, ...] in at least float32; the prediction itself if the parameterisations agree.

    Raises:
        ModelError: another schedule, or a step at which one of the two does not determine the denoised image.

    Proof: tests/diffusion/test_schedules.py.
    """
    for name in ("time_K", "level_K", "signal_K"):
        a, b = getattr(theirs, name), getattr(ours, name)
        if a.shape != b.shape or not torch.allclose(a, b, rtol=1e-5, atol=1e-6):
            raise ModelError(
                f"teacher: its schedule is another ({name[:-2]} {a.tolist()}, the student's {b.tolist()}). "
                "Fix: give it the student's scheduler and steps, or take a teacher that was trained on them"
            )
    if theirs.parameterisation == ours.parameterisation:
        return prediction_T
    factor_K, of_x_K = theirs.x0_p_K / ours.x0_p_K, (theirs.x0_x_K - ours.x0_x_K) / ours.x0_p_K
    undefined_K = ~(factor_K.isfinite() & of_x_K.isfinite())
    if bool(undefined_K.any()) and bool(gathered(undefined_K, k_T, torch.bool).any()):
        raise ModelError(
            f"teacher: its {theirs.parameterisation} cannot become {ours.parameterisation} at step "
            f"{int(undefined_K.nonzero()[0]) + 1}, where one of them says nothing about the image. Fix: leave this "
            "step out"
        )
    return affine(k_T, (factor_K, prediction_T), (of_x_K, x_T))


def coefficient_K(schedule: NoiseSchedule, divergence: Divergence, *, supervised_K: Tensor | None = None) -> Tensor:
    """c_k of the loss c_k ‖p_student − p_teacher‖², float64 [K], for two predictions at the same noisy image.

    - ``transition_kl``: mean_p² / 2 std², the KL between the two Gaussian transitions. They have one covariance,
      so the KL is the same in both directions. Its 1 / std² includes the −Δt that some released code leaves out.
    - ``transition``: mean_p² / 2, half the squared distance between the means of the next images: the limit of std² ·
      KL without noise.
    - ``x0``: x0_p², the squared distance between the denoised images.
    - ``velocity``: (dv / dp)², the squared distance between velocities: v = ε − x0 of flow matching, v = √ᾱ ε −
      √(1 − ᾱ) x0 of DDPM.

    The first two are sums over an image's dimensions. Those in ``MEANS`` are means, for which ``denoising_distance``
    divides.

    Args:
        schedule: of the student; the teacher's prediction is in its parameterisation.
        divergence: its name.
        supervised_K: bool [K], the steps that are trained on; others have a coefficient of 0. None: all.

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
