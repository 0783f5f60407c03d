"""The contracts of ``opd.types`` for denoising models: a position is a visited state, a noisy image at a step.

Suffixes: T positions, K states of a trajectory, X the dimensions of a latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from opd.types import AdvantageSignal, Prompt, Rollout, Segment, Signal, States


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory(Rollout):
    """What a sampler did with one prompt: the states it visited, and the noise it drew.

    ``completion_ids`` are the states' fingerprints, so that whoever scores one proves that it read that very state;
    ``logprobs`` the log-densities of the transitions as drawn, in nats, NaN where a step is deterministic. The mask
    leaves out steps that are not trained on.

    Attributes:
        latents_KX: float32 [K + 1, C, H, W]; the states, and behind them the clean latent.
        noise_KX: float32 [K, C, H, W]; what each step drew, or what a noised image's states hold.
        steps: of the sampler's table, one per state.
    """

    latents_KX: Tensor
    noise_KX: Tensor
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSegment(Segment):
    """A segment whose teacher sees a image beside the prompt.

    Attributes:
        image: float32 [3, H, W] in [−1, 1].
    """

    image: Tensor


@dataclass(frozen=True, slots=True)
class PredictionStates(States):
    """What a denoiser predicted at T states.

    Attributes:
        prediction_TX: float32 [T, C, H, W] in its own parameterisation.
    """

    prediction_TX: Tensor


@dataclass(frozen=True, slots=True)
class PredictionSignal(Signal):
    """What to predict at T states.

    Attributes:
        target_TX: float32 [T, C, H, W] in the student's parameterisation, detached.
        step_T: int64 [T] of the sampler's table.
    """

    target_TX: Tensor
    step_T: Tensor


@dataclass(frozen=True, slots=True)
class TransitionSignal(AdvantageSignal):
    """How much better than its alternatives the trajectory turned out that a step belongs to.

    Attributes:
        state_TX, next_TX: float32 [T, C, H, W], where the step started and where it went.
        step_T: int64 [T] of the sampler's table.
    """

    state_TX: Tensor
    next_TX: Tensor
    step_T: Tensor


@dataclass(frozen=True, slots=True)
class RewardSignal(Signal):
    """States at which the student's denoised mean is to please a reward.

    Attributes:
        state_TX: float32 [T, C, H, W].
        step_T: int64 [T] of the sampler's table.
        prompts: of the batch's rollouts.
    """

    state_TX: Tensor
    step_T: Tensor
    prompts: tuple[Prompt, ...]

    def to(self, device: torch.device) -> RewardSignal:
        """The same signal on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "prompts"})


class ImageTask(Protocol):
    """Prompts for images, and a program that can tell whether a image is what its prompt says."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """All prompts of a split, always in the same order; a image to show is in the entry ``image``."""
        ...

    def right(self, images_BX: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """float32 [B] in [0, 1]: how much of each prompt its image shows, as held-out figures have it."""
        ...

    def reward(self, images_BX: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """float32 [B]: what training may use, from another judge than ``right``; gradients reach the images."""
        ...

    def distance(self, images_BX: Tensor, prompts: Sequence[Prompt]) -> float:
        """How far the images are, as a set, from real ones of these prompts."""
        ...


def fingerprint(latents_TX: Tensor, time_T: Tensor) -> Tensor:
    """int64 [T]: a checksum of every bit of a state and its time, the same on every device."""
    bits_TX = latents_TX.detach().float().contiguous().flatten(1).view(torch.int32).long()
    place_X = torch.arange(1, bits_TX.shape[1] + 1, device=bits_TX.device)
    weight_X = place_X * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407  # Knuth's, wrapping around
    time_bits_T = time_T.detach().float().contiguous().view(torch.int32).long()
    return (bits_TX * weight_X).sum(1) + time_bits_T * 1_181_783_497_276_652_981
