"""Rollout sources of denoising runs: samplers of the student and of teachers, and noised images."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from opd.diffusion.divergences import log_density
from opd.diffusion.forward import trajectories_of
from opd.diffusion.images import image_of
from opd.diffusion.models import DenoisingModel
from opd.diffusion.schedules import NoiseSchedule, schedule_of
from opd.diffusion.types import Trajectory, fingerprint
from opd.teachers.by_domain import first
from opd.types import Prompt, RolloutSource, Span

Reward = Callable[[Tensor, Sequence[Prompt]], Tensor]
"""Images [B, 3, H, W] and their prompts to rewards [B]."""


class DenoisingSampler:
    """Denoises with a model step by step, and keeps every state and all noise.

    Args:
        model: predicts, in eval mode and without gradients.
        schedule: the steps.
        guidance: classifier-free guidance.
        trained: for each step, whether it is trained on; None for all.
        reward: judges the images; None leaves the rewards out.
        max_rows: most images per forward pass.
    """

    def __init__(
        self,
        model: DenoisingModel,
        schedule: NoiseSchedule,
        *,
        guidance: float = 1.0,
        trained: Sequence[bool] | None = None,
        reward: Reward | None = None,
        max_rows: int = 256,
    ) -> None:
        self.model = model
        self.schedule = schedule
        self.guidance = guidance
        self.trained = tuple(trained) if trained is not None else (True,) * schedule.num_steps
        self.reward = reward
        self.max_rows = max_rows

    @torch.no_grad()
    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Trajectory]:
        """One trajectory per prompt, in order."""
        noise_BKX = noise(prompts, seed, (self.schedule.num_steps + 1, *self.model.shape))
        rollouts: list[Trajectory] = []
        training = self.model.model.training
        self.model.model.eval()
        for start in range(0, len(prompts), self.max_rows):
            rows = slice(start, start + self.max_rows)
            rollouts += self._batch(prompts[rows], noise_BKX[rows])
        self.model.model.train(training)
        return rollouts

    def _batch(self, prompts: Sequence[Prompt], noise_BKX: Tensor) -> list[Trajectory]:
        device, steps = self.model.device, self.schedule.num_steps
        conditioning, noise_BKX = self.model.encode(prompts), noise_BKX.to(device)
        states, logprobs = [noise_BKX[:, 0]], []
        for k in range(steps):
            k_B = torch.full((len(prompts),), k, device=device)
            prediction_BX = self.model.predict(states[-1], self.schedule.time(k_B), conditioning, self.guidance)
            states.append(self.schedule.next(k_B, states[-1], prediction_BX, noise_BKX[:, k + 1]))
            if float(self.schedule.std_K[k]):
                logprobs.append(log_density(self.schedule, k_B, states[-2], prediction_BX, states[-1]))
            else:
                logprobs.append(torch.full((len(prompts),), torch.nan))
        latents_BKX, logprobs_BK = torch.stack(states, 1).cpu(), torch.stack([t.cpu() for t in logprobs], 1)
        step_K = torch.arange(steps)
        rewards = self.reward(self.model.decode(states[-1]).cpu(), prompts).tolist() if self.reward else None
        return [
            replace(
                trajectory(prompt, self.schedule.time(step_K), latents_BKX[b], noise_BKX[b, 1:].cpu(), step_K),
                completion_mask=self.trained,
                logprobs=tuple(logprobs_BK[b].tolist()),
                reward=rewards[b] if rewards else None,
            )
            for b, prompt in enumerate(prompts)
        ]


def noise(prompts: Sequence[Prompt], seed: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32 [B, ...], seeded per prompt.

    The noise depends on the seed, the prompt's id and the number of its earlier occurrences, not on the rest of the
    batch or the device. So a student and a teacher of some of its prompts start from the same noise.
    """
    seen: Counter[str] = Counter()
    rows = []
    for prompt in prompts:
        own = zlib.crc32(f"{seed} {seen[prompt.id]} {prompt.id}".encode())
        rows.append(torch.randn(*shape, generator=torch.Generator().manual_seed(own)))
        seen[prompt.id] += 1
    return torch.stack(rows)


def trajectory(prompt: Prompt, time_K: Tensor, latents_KX: Tensor, noise_KX: Tensor, step_K: Tensor) -> Trajectory:
    """Visited states as a rollout.

    Args:
        time_K: the denoiser's time input at each state.
        latents_KX: [K + 1, C, H, W], the clean latent last.
        noise_KX: [K, C, H, W].
        step_K: int64 [K], steps of the run's schedule.
    """
    states = len(step_K)
    return Trajectory(
        prompt=prompt,
        prompt_ids=(),
        completion_ids=tuple(fingerprint(latents_KX[:-1], time_K).tolist()),
        completion_mask=(True,) * states,
        logprobs=(torch.nan,) * states,
        turns=(Span(0, states),),
        finish="stop",
        latents_KX=latents_KX,
        noise_KX=noise_KX,
        steps=tuple(step_K.tolist()),
    )


class DomainSamplers:
    """Trajectories of several teachers: each prompt goes to the teacher with the largest share of its domain.

    Args:
        samplers: by teacher's name.
        shares: by domain and teacher's name; empty for a single teacher.
    """

    def __init__(self, samplers: Mapping[str, DenoisingSampler], shares: Mapping[str, Mapping[str, float]]) -> None:
        self.samplers = samplers
        self.shares = shares

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Trajectory]:
        """One trajectory per prompt, in order."""
        single = next(iter(self.samplers))
        names = [first(self.shares[p.domain]) if self.shares else single for p in prompts]
        rollouts: dict[int, Trajectory] = {}
        for name, sampler in self.samplers.items():
            rows = [row for row, teacher in enumerate(names) if teacher == name]
            made = sampler.rollout([prompts[row] for row in rows], seed, step) if rows else []
            rollouts |= {row: replace(t, source="teacher") for row, t in zip(rows, made, strict=True)}
        return [rollouts[row] for row in range(len(prompts))]


@dataclass(frozen=True)
class PromptImages:
    """The clean latents of the prompts' own images; None for a prompt without an image."""

    model: DenoisingModel

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> list[Tensor | None]:
        images = [image_of(prompt) for prompt in prompts]
        return [None if image is None else self.model.latents_of(image[None])[0].cpu() for image in images]


@dataclass(frozen=True)
class GeneratedImages:
    """The clean latents at the end of another source's trajectories."""

    source: RolloutSource

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> list[Tensor | None]:
        return [trajectory.latents_KX[-1] for trajectory in trajectories_of(self.source.rollout(prompts, seed))]


class NoisedImages:
    """Clean images at random noise levels: the states of supervised fine-tuning.

    Args:
        latents: the clean latent [C, H, W] of each prompt; None for a prompt without an image.
        levels: every noise level that the model was pretrained on.
        states: number of states per image, each at its own noise level.
        first: index of the first of ``levels`` in the run's schedule.
        others: source of the trajectories of prompts without an image.
    """

    def __init__(
        self,
        latents: Callable[[Sequence[Prompt], int], Sequence[Tensor | None]],
        levels: NoiseSchedule,
        *,
        states: int,
        first: int = 0,
        others: RolloutSource | None = None,
    ) -> None:
        self.latents = latents
        self.levels = levels
        self.states = states
        self.first = first
        self.others = others

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Trajectory]:
        """One rollout per prompt, in order."""
        generator = torch.Generator().manual_seed(seed)
        clean = self.latents(prompts, seed)
        without = [prompt for prompt, latent_X in zip(prompts, clean, strict=True) if latent_X is None]
        own = iter(trajectories_of(self.others.rollout(without, seed, step)) if self.others and without else ())
        return [
            next(own) if latent_X is None else self._noised(prompt, latent_X, generator)
            for prompt, latent_X in zip(prompts, clean, strict=True)
        ]

    def _noised(self, prompt: Prompt, clean_X: Tensor, generator: torch.Generator) -> Trajectory:
        steps_K = torch.randint(self.levels.num_steps, (self.states,), generator=generator)
        noise_KX = torch.randn((self.states, *clean_X.shape), generator=generator)
        states_KX = self.levels.noised(steps_K, clean_X.expand_as(noise_KX), noise_KX)
        latents_KX = torch.cat([states_KX, clean_X[None]])
        rollout = trajectory(prompt, self.levels.time(steps_K), latents_KX, noise_KX, steps_K + self.first)
        return replace(rollout, source="references")


def joined(one: NoiseSchedule, other: NoiseSchedule) -> NoiseSchedule:
    """The steps of two schedules of one model, one after the other."""
    columns: dict[str, Any] = {f.name: getattr(one, f.name) for f in fields(one) if f.name.endswith("_K")}
    both: dict[str, Any] = {name: torch.cat([column, getattr(other, name)]) for name, column in columns.items()}
    return replace(one, **both)


def training_levels(model: DenoisingModel) -> NoiseSchedule:
    """One step at every noise level that a model was pretrained on."""
    scheduler = model.pipeline.scheduler
    if "timestep_spacing" in scheduler.config:  # an offset would lead beyond the last time
        scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing="leading", steps_offset=0)
    return schedule_of(scheduler, steps=scheduler.config.num_train_timesteps, sigmas="scheduler")
