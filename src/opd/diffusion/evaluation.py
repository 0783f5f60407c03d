"""Measuring a denoising student on held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from opd.diffusion.forward import trajectories_of
from opd.diffusion.models import DenoisingModel
from opd.diffusion.types import ImageTask
from opd.evaluation.evaluate import SEED
from opd.evaluation.metrics import by_domain
from opd.models.forward import align
from opd.types import ForwardPass, Metrics, Objective, Prompt, Rollout, RolloutSource, Teacher, View


@dataclass(frozen=True, kw_only=True)
class ImageEvaluation:
    """Samples images for held-out prompts and measures them; a call returns the metrics.

    Attributes:
        model: decodes latents to images.
        prompts: held-out prompts, each repeated for every image of it.
        student: samples with the student's current weights, without noise in its steps.
        task: judges the images; None if nothing does.
        teacher: samples with the teachers; None leaves their metrics out.
        distance: the loss's own distance to the teacher, measured if no task judges images.
    """

    model: DenoisingModel
    prompts: Sequence[Prompt]
    student: RolloutSource
    task: ImageTask | None
    teacher: RolloutSource | None = None
    distance: Callable[[Sequence[Rollout]], Metrics] | None = None

    def __call__(self) -> Metrics:
        """``accuracy`` and ``frechet``, those of each domain and of the teacher; or ``distance``."""
        rollouts = self.student.rollout(self.prompts, SEED)
        if self.task is None:
            return self.distance(rollouts) if self.distance else {}
        return self._judged(rollouts) | self._teacher_metrics

    @cached_property
    def _teacher_metrics(self) -> Metrics:
        """The teachers' metrics on the same prompts and noise; measured once."""
        if self.teacher is None:
            return {}
        metrics = self._judged(self.teacher.rollout(self.prompts, SEED))
        return {f"teacher_{name}": value for name, value in metrics.items()}

    def _judged(self, rollouts: Sequence[Rollout]) -> Metrics:
        assert self.task
        images_BX = decoded_images(self.model, rollouts)
        prompts = [rollout.prompt for rollout in rollouts]
        metrics = by_domain("accuracy", prompts, self.task.right(images_BX, prompts).tolist())
        return metrics | ({"frechet": self.task.distance(images_BX, prompts)} if len(prompts) > 1 else {})


@torch.no_grad()
def decoded_images(model: DenoisingModel, rollouts: Sequence[Rollout]) -> Tensor:
    """The images at the end of trajectories, float32 [B, 3, H, W] on the CPU."""
    clean_BX = torch.stack([trajectory.latents_KX[-1] for trajectory in trajectories_of(rollouts)])
    return model.decode(clean_BX.to(model.device)).float().cpu()


@torch.no_grad()
def mean_distance(
    rollouts: Sequence[Rollout], *, reader: ForwardPass, teacher: Teacher, view: View, objective: Objective
) -> Metrics:
    """``distance``: the mean of an objective over the states of trajectories; empty without any target."""
    signal = teacher.score(rollouts, view.segments(rollouts))
    total = 0.0
    for where, states in reader(rollouts):
        here = signal.take(torch.isin(signal.rollout_T, where.rollout_T.cpu())).to(where.token_T.device)
        if len(here):
            weight_T = torch.ones(len(here), device=where.token_T.device)
            total += float(objective(states.take(align(rollouts, where, here)), here, weight_T))
    return {"distance": total / len(signal)} if len(signal) else {}


def describe(rollouts: Sequence[Rollout]) -> Metrics:
    """Metrics of the student's own trajectories in a training step.

    Returns:
        ``reward``: mean reward, of all and by domain, if a task judges images. ``spread``: standard deviation of the
        clean latents across the batch; it falls to 0 if the student generates one image for every prompt.
    """
    judged = [r for r in rollouts if r.reward is not None]
    metrics = by_domain("reward", [r.prompt for r in judged], [r.reward or 0.0 for r in judged])
    if len(rollouts) > 1:
        clean_BX = torch.stack([trajectory.latents_KX[-1] for trajectory in trajectories_of(rollouts)])
        metrics["spread"] = float(clean_BX.std(0).mean())
    return metrics
