"""Objectives of denoising runs: each fits one kind of signal with its loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from opd.diffusion.divergences import MEANS, Divergence, coefficient_K, log_density
from opd.diffusion.models import DenoisingModel
from opd.diffusion.sampler import Reward
from opd.diffusion.schedules import NoiseSchedule
from opd.diffusion.types import PredictionSignal, PredictionStates, RewardSignal, TransitionSignal
from opd.losses.denoising import denoising_distance, transition_policy_gradient
from opd.types import Signal, States


@dataclass(frozen=True, kw_only=True)
class DenoisingDistance:
    """A weighted squared distance between two predictions; ``divergences.coefficient_K`` gives the weights.

    Attributes:
        coefficient_K: float64 [K], for each step of the student's schedule.
        per_dimension: take the mean over a latent's dimensions instead of their sum.
    """

    coefficient_K: Tensor
    per_dimension: bool

    @classmethod
    def of(cls, schedule: NoiseSchedule, divergence: Divergence, trained_K: Tensor) -> DenoisingDistance:
        """The distance of a divergence's name.

        Args:
            trained_K: bool [K], the steps that are trained on.
        """
        coefficients = coefficient_K(schedule, divergence, supervised_K=trained_K)
        return cls(coefficient_K=coefficients, per_dimension=divergence in MEANS)

    def __call__(self, student: States, signal: Signal, weight_T: Tensor, per_token_T: Tensor | None = None) -> Tensor:
        """The weighted sum of distances, float32 []."""
        assert isinstance(student, PredictionStates)
        assert isinstance(signal, PredictionSignal)
        coefficient_T = self.coefficient_K[signal.step_T.cpu()].float().to(weight_T.device)
        return denoising_distance(
            student.prediction_TX,
            signal.target_TX,
            coefficient_T,
            weight_T,
            per_dimension=self.per_dimension,
            per_position=per_token_T,
        )


@dataclass(frozen=True, kw_only=True)
class TransitionPolicyGradient:
    """Raises the probability of transitions with a positive advantage (Flow-GRPO, arXiv 2505.05470).

    Attributes:
        schedule: of the student, with noise.
    """

    schedule: NoiseSchedule

    def __call__(self, student: States, signal: Signal, weight_T: Tensor, per_token_T: Tensor | None = None) -> Tensor:
        """−Σ w r A, float32 []. Every batch is used for one update, so r is 1 and needs no clip."""
        assert isinstance(student, PredictionStates)
        assert isinstance(signal, TransitionSignal)
        logprobs_T = log_density(self.schedule, signal.step_T, signal.state_TX, student.prediction_TX, signal.next_TX)
        return transition_policy_gradient(
            logprobs_T,
            signal.rollout_logprobs_T,
            signal.advantage_T,
            weight_T,
            per_position=per_token_T,
        )


@dataclass(frozen=True, kw_only=True)
class RewardGradient:
    """−R of the student's denoised mean, differentiated (ReFL, arXiv 2304.05977).

    Attributes:
        schedule: of the student.
        model: decodes latents to images.
        reward: of images and their prompts, with gradients.
    """

    schedule: NoiseSchedule
    model: DenoisingModel
    reward: Reward

    def __call__(self, student: States, signal: Signal, weight_T: Tensor, per_token_T: Tensor | None = None) -> Tensor:
        """−Σ w R, float32 []."""
        assert isinstance(student, PredictionStates)
        assert isinstance(signal, RewardSignal)
        clean_TX = self.schedule.denoised(signal.step_T, signal.state_TX, student.prediction_TX)
        prompts = [signal.prompts[r] for r in signal.rollout_T.tolist()]
        reward_T = self.reward(self.model.decode(clean_TX.float()), prompts)
        if per_token_T is not None:
            per_token_T.copy_(-reward_T.detach())
        return -(reward_T @ weight_T)
