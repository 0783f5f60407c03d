"""The noise schedules and samplers of a run, as its run file sets them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from opd.config.diffusion import DiffusionConfig
from opd.diffusion.forward import student_passes
from opd.diffusion.models import DenoisingModel
from opd.diffusion.sampler import DenoisingSampler, DomainSamplers, Reward, joined, training_levels
from opd.diffusion.schedules import NoiseSchedule, schedule_of
from opd.types import Rollout, Signal, States


@dataclass(frozen=True, kw_only=True)
class Samplers:
    """Makes a run's noise schedules and samplers.

    Attributes:
        config: the run file.
        student: generates as it is at the call of a sampler.
        teachers: the models of ``teacher.model`` or ``teacher.models``, by name.
    """

    config: DiffusionConfig
    student: DenoisingModel
    teachers: Mapping[str, DenoisingModel]

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """The student's noise schedule in training; for noised images, their levels follow its steps."""
        own = self.schedule_for(self.student)
        return joined(own, self.training_levels) if self.config.rollout.source.type == "images" else own

    @cached_property
    def training_levels(self) -> NoiseSchedule:
        """Every noise level that the student was pretrained on."""
        return training_levels(self.student)

    @property
    def trained_steps(self) -> list[bool]:
        """For each step of the sampler, whether it is trained on."""
        weights = self.config.loss.step_weights
        return [w > 0 for w in weights] if weights else [True] * self.config.rollout.steps

    @property
    def trained_K(self) -> Tensor:
        """bool [K] over the whole schedule; the levels of noised images are always trained on."""
        rest = self.schedule.num_steps - self.config.rollout.steps
        return torch.tensor(self.trained_steps + [True] * rest)

    def schedule_for(self, model: DenoisingModel, *, held_out: bool = False) -> NoiseSchedule:
        """A model's own scheduler with the run's steps.

        Args:
            held_out: for evaluation, without added noise and in ``eval.steps`` steps.
        """
        rollout, scheduler = self.config.rollout, model.pipeline.scheduler
        steps = (self.config.eval.steps if held_out else None) or rollout.steps
        sigmas = rollout.sigmas if steps == rollout.steps or isinstance(rollout.sigmas, str) else "even"
        noise = 0.0 if held_out else rollout.noise
        return schedule_of(scheduler, steps=steps, sigmas=sigmas, noise=noise, renoise=rollout.renoise)

    def of_student(self, *, held_out: bool = False, reward: Reward | None = None) -> DenoisingSampler:
        """The student's sampler; ``reward`` judges its images."""
        rollout = self.config.rollout
        return DenoisingSampler(
            self.student,
            self.schedule_for(self.student, held_out=held_out),
            guidance=rollout.guidance,
            trained=None if held_out else self.trained_steps,
            reward=reward,
            max_rows=rollout.max_rows,
        )

    def of_teachers(self, *, held_out: bool = False) -> DomainSamplers:
        """The teachers' samplers, each with the model's own scheduler."""
        samplers = {
            name: DenoisingSampler(
                model,
                self.schedule_for(model, held_out=held_out),
                guidance=self.config.teacher.guidance,
                trained=None if held_out else self.trained_steps,
                max_rows=self.config.rollout.max_rows,
            )
            for name, model in self.teachers.items()
        }
        return DomainSamplers(samplers, self.config.teacher.shares)

    def student_passes(
        self, rollouts: Sequence[Rollout], *, size: int | None = None
    ) -> Iterator[tuple[Signal, States]]:
        """Forward passes of the student over its trajectories, with gradients; ``size`` trajectories each."""
        guidance = self.config.rollout.guidance
        return student_passes(self.student, rollouts, schedule=self.schedule, guidance=guidance, size=size)
