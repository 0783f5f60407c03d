"""Trajectories: the student's or a teacher's own denoising, and images that were noised."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from opd.diffusion.forward import trajectories_of
from opd.diffusion.images import image_of
from opd.diffusion.models import DenoisingModel
from opd.diffusion.schedules import NoiseSchedule, log_density, schedule_of
from opd.diffusion.types import Trajectory, fingerprint
from opd.teachers.experts import first
from opd.types import Prompt, RolloutSource, Span

Reward = Callable[[Tensor, Sequence[Prompt]], Tensor]
"""Of images and their prompts, [B]."""


class DenoisingSampler:
    """Denoises with a model, step by step, and keeps every state and all noise.

    Args:
        model: denoises, in eval mode and without gradients.
        schedule: what each step does.
        guidance: classifier-free guidance.
        counts: by step, whether it is trained on.
        reward: judges the images; None leaves them unjudged.
        max_rows: images at a time.
    """

    def __init__(
        self,
        model: DenoisingModel,
        schedule: NoiseSchedule,
        *,
        guidance: float = 1.0,
        counts: Sequence[bool] | None = None,
        reward: Reward | None = None,
        max_rows: int = 256,
    ) -> None:
        self.model = model
        self.schedule = schedule
        self.guidance = guidance
        self.counts = tuple(counts) if counts is not None else (True,) * schedule.num_steps
        self.reward = reward
        self.max_rows = max_rows

    @torch.no_grad()
    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Trajectory]:
        """One trajectory per prompt, in order."""
        noise_BKX = noise(prompts, seed, (self.schedule.num_steps + 1, *self.model.shape))
        rolled: list[Trajectory] = []
        training = self.model.model.training
        self.model.model.eval()
        for start in range(0, len(prompts), self.max_rows):
            rows = slice(start, start + self.max_rows)
            rolled += self._batch(prompts[rows], noise_BKX[rows])
        self.model.model.train(training)
        return rolled

    def _batch(self, prompts: Sequence[Prompt], noise_BKX: Tensor) -> list[Trajectory]:
        device, steps = self.model.device, self.schedule.num_steps
        told, noise_BKX = self.model.encode(prompts), noise_BKX.to(device)
        states, logprobs = [noise_BKX[:, 0]], []
        for k in range(steps):
            k_B = torch.full((len(prompts),), k, device=device)
            prediction_BX = self.model.predict(states[-1], self.schedule.time(k_B), told, self.guidance)
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
                completion_mask=self.counts,
                logprobs=tuple(logprobs_BK[b].tolist()),
                reward=rewards[b] if rewards else None,
            )
            for b, prompt in enumerate(prompts)
        ]


def noise(prompts: Sequence[Prompt], seed: int, shape: Sequence[int]) -> Tensor:
    """Standard normal, float32 [B, ...]: of a prompt and how often it has come, whatever else is in the batch.

    So a student and the teacher of some of its prompts begin with the same, and every device has the same.
    """
    seen: Counter[str] = Counter()
    drawn = []
    for prompt in prompts:
        own = zlib.crc32(f"{seed} {seen[prompt.id]} {prompt.id}".encode())
        drawn.append(torch.randn(*shape, generator=torch.Generator().manual_seed(own)))
        seen[prompt.id] += 1
    return torch.stack(drawn)


def trajectory(prompt: Prompt, time_K: Tensor, latents_KX: Tensor, noise_KX: Tensor, step_K: Tensor) -> Trajectory:
    """States as a rollout.

    Args:
        time_K: what the denoiser is told.
        latents_KX: [K + 1, C, H, W], the clean latent last.
        noise_KX: [K, C, H, W].
        step_K: int64 [K] of the run's table of steps.
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


class TeacherSource:
    """Trajectories by the teacher that knows most about a prompt's domain.

    Args:
        samplers: of each teacher, by name.
        shares: by domain and teacher.
    """

    def __init__(self, samplers: Mapping[str, DenoisingSampler], shares: Mapping[str, Mapping[str, float]]) -> None:
        self.samplers = samplers
        self.shares = shares

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Trajectory]:
        """One trajectory per prompt, in order."""
        who = [first(self.shares[p.domain]) if self.shares else next(iter(self.samplers)) for p in prompts]
        drawn: dict[int, Trajectory] = {}
        for name, sampler in self.samplers.items():
            own = [i for i, author in enumerate(who) if author == name]
            made = sampler.rollout([prompts[i] for i in own], seed, step) if own else []
            drawn |= {i: replace(t, source="teacher") for i, t in zip(own, made, strict=True)}
        return [drawn[i] for i in range(len(prompts))]


@dataclass(frozen=True)
class PromptImages:
    """The clean latents of prompts' own images; None for a prompt that has none."""

    model: DenoisingModel

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> list[Tensor | None]:
        shown = [image_of(prompt) for prompt in prompts]
        return [None if image is None else self.model.latents_of(image[None])[0].cpu() for image in shown]


@dataclass(frozen=True)
class GeneratedImages:
    """The clean latents that somebody's trajectories end with."""

    roller: RolloutSource

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> list[Tensor | None]:
        return [trajectory.latents_KX[-1] for trajectory in trajectories_of(self.roller.rollout(prompts, seed))]


class NoisedImages:
    """Images at random steps of the schedule they are trained on: the states of plain fine-tuning.

    Args:
        latents: the clean latent [C, H, W] of each prompt; None where there is no image.
        schedule: of every time that the model was trained on.
        states: of each image, at times of their own.
        first: where the schedule's steps begin in the run's table.
        others: makes the trajectories of prompts without a image.
    """

    def __init__(
        self,
        latents: Callable[[Sequence[Prompt], int], Sequence[Tensor | None]],
        schedule: NoiseSchedule,
        *,
        states: int,
        first: int = 0,
        others: RolloutSource | None = None,
    ) -> None:
        self.latents = latents
        self.schedule = schedule
        self.states = states
        self.first = first
        self.others = others

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Trajectory]:
        """So many states of each prompt's image."""
        generator = torch.Generator().manual_seed(seed)
        clean = self.latents(prompts, seed)
        plain = [prompt for prompt, latent_X in zip(prompts, clean, strict=True) if latent_X is None]
        drawn = iter(trajectories_of(self.others.rollout(plain, seed, step)) if self.others and plain else ())
        return [
            next(drawn) if latent_X is None else self._noised(prompt, latent_X, generator)
            for prompt, latent_X in zip(prompts, clean, strict=True)
        ]

    def _noised(self, prompt: Prompt, clean_X: Tensor, generator: torch.Generator) -> Trajectory:
        steps_K = torch.randint(self.schedule.num_steps, (self.states,), generator=generator)
        noise_KX = torch.randn((self.states, *clean_X.shape), generator=generator)
        states_KX = self.schedule.noised(steps_K, clean_X.expand_as(noise_KX), noise_KX)
        made = trajectory(
            prompt, self.schedule.time(steps_K), torch.cat([states_KX, clean_X[None]]), noise_KX, steps_K + self.first
        )
        return replace(made, source="references")


def joined(one: NoiseSchedule, other: NoiseSchedule) -> NoiseSchedule:
    """The steps of two samplers of one model in one table."""
    columns: dict[str, Any] = {f.name: getattr(one, f.name) for f in fields(one) if f.name.endswith("_K")}
    both: dict[str, Any] = {name: torch.cat([column, getattr(other, name)]) for name, column in columns.items()}
    return replace(one, **both)


def noising(model: DenoisingModel) -> NoiseSchedule:
    """A step at every time that a model was trained on."""
    scheduler = model.pipeline.scheduler
    if "timestep_spacing" in scheduler.config:  # an offset would lead beyond the last time
        scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing="leading", steps_offset=0)
    return schedule_of(scheduler, steps=scheduler.config.num_train_timesteps, sigmas="scheduler")
