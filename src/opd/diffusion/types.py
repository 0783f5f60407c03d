"""The contracts of ``opd.types`` for denoising models: a position is a visited state, a noisy latent at one step.

Suffixes: T positions, K states of a trajectory, X the dimensions of a latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from opd.signals import AdvantageSignal
from opd.types import Prompt, Rollout, Segment, Signal, States


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory(Rollout):
    """The states that a sampler visited for one prompt, and the noise that it used.

    ``completion_ids`` are fingerprints of the states, which prove that a teacher scored these very states. ``logprobs``
    are the log-densities of the transitions as sampled, in nats, NaN at a deterministic step. The mask leaves out
    steps that are not trained on.

    Attributes:
        latents_KX: float32 [K + 1, C, H, W]; the states, and after them the clean latent.
        noise_KX: float32 [K, C, H, W]; the noise added at each step, or the noise in each state of a noised image.
        steps: each state's step in the run's schedule.
    """

    latents_KX: Tensor
    noise_KX: Tensor
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSegment(Segment):
    """A segment whose teacher is conditioned on an image as well as the prompt.

    Attributes:
        image: float32 [3, H, W] in [−1, 1].
    """

    image: Tensor


@dataclass(frozen=True, slots=True)
class PredictionStates(States):
    """A denoiser's predictions at T states.

    Attributes:
        prediction_TX: float32 [T, C, H, W] in its own parameterisation.
    """

    prediction_TX: Tensor


@dataclass(frozen=True, slots=True)
class PredictionSignal(Signal):
    """Target predictions at T states.

    Attributes:
        target_TX: float32 [T, C, H, W] in the student's parameterisation, detached.
        step_T: int64 [T], step in the run's schedule.
    """

    target_TX: Tensor
    step_T: Tensor


@dataclass(frozen=True, slots=True)
class TransitionSignal(AdvantageSignal):
    """Advantages of T transitions; each is that of its trajectory.

    Attributes:
        state_TX, next_TX: float32 [T, C, H, W], the states before and after the step.
        step_T: int64 [T], step in the run's schedule.
    """

    state_TX: Tensor
    next_TX: Tensor
    step_T: Tensor


@dataclass(frozen=True, slots=True)
class RewardSignal(Signal):
    """T states at which the reward of the student's denoised mean is differentiated.

    Attributes:
        state_TX: float32 [T, C, H, W].
        step_T: int64 [T], step in the run's schedule.
        prompts: of the batch's rollouts.
    """

    state_TX: Tensor
    step_T: Tensor
    prompts: tuple[Prompt, ...]

    def to(self, device: torch.device) -> RewardSignal:
        """The same signal on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "prompts"})


class ImageTask(Protocol):
    """Prompts for images, and programs that judge whether an image shows its prompt."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """All prompts of a split, always in the same order; ``data["image"]`` holds a prompt's image, if it has one."""
        ...

    def right(self, images_BX: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """float32 [B] in [0, 1]: the share of each prompt that its image shows; the held-out accuracy."""
        ...

    def reward(self, images_BX: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """float32 [B]: the training reward, by another judge than ``right``; gradients flow to the images."""
        ...

    def distance(self, images_BX: Tensor, prompts: Sequence[Prompt]) -> float:
        """Distance between the set of images and real images of these prompts."""
        ...


def fingerprint(latents_TX: Tensor, time_T: Tensor) -> Tensor:
    """int64 [T]: a checksum of every bit of a state and its time, the same on every device."""
    bits_TX = latents_TX.detach().float().contiguous().flatten(1).view(torch.int32).long()
    place_X = torch.arange(1, bits_TX.shape[1] + 1, device=bits_TX.device)
    weight_X = place_X * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407  # Knuth's, wrapping around
    time_bits_T = time_T.detach().float().contiguous().view(torch.int32).long()
    return (bits_TX * weight_X).sum(1) + time_bits_T * 1_181_783_497_276_652_981
