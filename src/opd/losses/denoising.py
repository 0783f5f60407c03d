"""Losses on what a denoiser predicts. Suffixes: T transitions (an image at a step), X an image's dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from opd.losses.sampled import policy_gradient

MAX_LOG_RATIO = 20.0  # nats; e^20 is beyond every clip, and e^89, which a sum over many dimensions reaches, no float32


def denoising_distance(
    prediction_TX: Tensor,
    target_TX: Tensor,
    coefficient_T: Tensor,
    weight_T: Tensor,
    *,
    per_dimension: bool = False,
    per_position: Tensor | None = None,
) -> Tensor:
    """Σ_t w_t c_t ‖p_t − q_t‖²: the weighted sum of squared differences between two predictions at one noisy image.

    The coefficient says which distance this is: ``opd.diffusion.divergences.coefficient_K``. A transition whose
    coefficient or weight is 0 is left out, so what it holds, NaN included, reaches neither loss nor gradient.

    Args:
        prediction_TX: [T, ...], the student's; gradient flows.
        target_TX: [T, ...], the teacher's in the student's parameterisation, detached.
        coefficient_T: [T] ≥ 0, detached.
        weight_T: [T] finite and ≥ 0, detached.
        per_dimension: ‖·‖² is the mean over an image's dimensions, not their sum. A KL is a sum; the distances between
            velocities or denoised images are means, so that a learning rate serves images of every size.
        per_position: float32 [T], overwritten with each transition's own c_t ‖p_t − q_t‖², 0 where it is left out; for
            logging, detached.

    Returns:
        float32 []: nats where the coefficient makes it a KL, else squared units of the prediction.

    Source: DiffusionOPD, arXiv 2605.15055, equations 11 and 12; D-OPSD, arXiv 2605.05204.
    Proof: tests/fidelity/test_denoising.py.
    """
    kept_T = (coefficient_T != 0) & (weight_T != 0)
    difference_TX = prediction_TX.float().flatten(1) - target_TX.detach().float().flatten(1)
    square_TX = torch.where(kept_T[:, None], difference_TX, 0.0).square()
    norm_T = square_TX.mean(1) if per_dimension else square_TX.sum(1)
    distance_T = torch.where(kept_T, coefficient_T, 0.0).float() * norm_T
    if per_position is not None:
        per_position.copy_(distance_T.detach())
    return distance_T @ weight_T.float()


def transition_log_density(mean_TX: Tensor, next_TX: Tensor, std_T: Tensor) -> Tensor:
    """−‖x' − μ‖² / 2σ² − d log σ − (d / 2) log 2π: the log-density of the next image, summed over its d dimensions.

    Args:
        mean_TX: [T, ...]; gradient flows.
        next_TX: [T, ...], the image that was drawn.
        std_T: [T] > 0, detached.

    Returns:
        float32 [T], nats. At d = 16,384 neighbouring float32 numbers lie 0.002 apart, and so do log-ratios.

    Source: Flow-GRPO, arXiv 2505.05470, with the sum over dimensions in place of their mean.
    Proof: tests/fidelity/test_denoising.py.
    """
    std_T = std_T.float()
    score_TX = (next_TX.float() - mean_TX.float()).flatten(1) / std_T[:, None]
    constant_T = std_T.log() + math.log(2 * math.pi) / 2
    return -score_TX.square().sum(1) / 2 - score_TX.shape[1] * constant_T


def transition_policy_gradient(
    student_logprobs_T: Tensor,
    rollout_logprobs_T: Tensor,
    advantage_T: Tensor,
    weight_T: Tensor,
    *,
    clip: tuple[float, float] | None = None,
    per_position: Tensor | None = None,
) -> Tensor:
    """−Σ_t w_t min(r A, clip(r, 1 − low, 1 + high) A), r = p(x') / μ(x'): the clipped surrogate of a drawn transition.

    A must depend on what was drawn. The KL between the student's and the teacher's transition from x does not depend
    on x', so as advantage of its own step it has a mean gradient of zero; differentiate it with ``denoising_distance``
    instead. log q(x') − log μ(x'), the teacher's log-density less the rollout's, does have the gradient of minus that
    KL in the mean.

    Args:
        student_logprobs_T: float32 [T], nats, sums over the dimensions; gradient flows.
        rollout_logprobs_T: float32 [T], nats, under which x' was drawn, detached.
        advantage_T: float32 [T], nats or reward units, detached.
        weight_T: [T] finite and ≥ 0, detached.
        clip: (low, high) of PPO; none: importance sampling.
        per_position: float32 [T], overwritten with each transition's own loss, 0 where it is left out; detached.

    Returns:
        float32 []. A transition that has weight 0, or an advantage or log-density that is not finite, is left out.

    Source: Flow-GRPO, arXiv 2505.05470; DiffusionOPD, arXiv 2605.15055, equations 16 to 23.
    Proof: tests/fidelity/test_denoising.py.
    """
    rollout_T, advantage_T = rollout_logprobs_T.detach().float(), advantage_T.detach().float()
    log_ratio_T = student_logprobs_T.float() - rollout_T
    kept_T = log_ratio_T.isfinite() & advantage_T.isfinite() & (weight_T != 0)
    log_ratio_T = torch.where(kept_T, log_ratio_T, 0.0)
    limited_T = log_ratio_T.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    function = policy_gradient(torch.where(kept_T, advantage_T, 0.0), torch.zeros_like(rollout_T), clip=clip)
    loss_T, slope_T = function(torch.arange(len(limited_T), device=limited_T.device), limited_T)
    if per_position is not None:
        per_position.copy_(loss_T)
    # loss_T's value, slope_T as derivative: no product of 0 and infinity, which autograd through min and exp may make
    return (loss_T + slope_T * (log_ratio_T - log_ratio_T.detach())) @ weight_T.float()
