"""A loaded denoising run: its models and prompts, and factories that apply the run file's settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from opd.axes.views.plain import PlainView
from opd.config.diffusion import DiffusionConfig
from opd.data.curriculum import Uniform
from opd.diffusion.loading import SINGLE
from opd.diffusion.models import DenoisingModel, frozen_copy
from opd.diffusion.objectives import DenoisingDistance, RewardGradient, TransitionPolicyGradient
from opd.diffusion.sampler import NoisedImages
from opd.diffusion.samplers import Samplers
from opd.diffusion.schedules import NoiseSchedule
from opd.diffusion.teachers import DenoisingTeacher, DomainTeachers, RewardAdvantage, RewardStates
from opd.diffusion.types import ImageTask
from opd.models.copies import EmaWeights
from opd.teachers.sampled import GroupAdvantages
from opd.types import Prompt, Rollout, RolloutSource, Signal, Teacher, Term, View

EQUAL_REWARDS = (
    "the rewards were equal in every group. Fix: take prompts that some images get right, or raise "
    "rollout.rollouts_per_prompt"
)


@dataclass(frozen=True, kw_only=True)
class DenoisingContext:
    """A run of a denoising model, with the models and prompts that its run file names.

    Attributes:
        task: judges the images of training prompts; None if nothing judges them.
        teachers: the models of ``teacher.model`` or ``teacher.models``, by name.
        notes: sentences about the prompts, which are reported once, when the run starts.
    """

    config: DiffusionConfig
    student: DenoisingModel
    teachers: Mapping[str, DenoisingModel]
    prompts: list[Prompt]
    task: ImageTask | None
    held_out: list[Prompt]
    held_out_task: ImageTask | None
    notes: list[str]

    @cached_property
    def samplers(self) -> Samplers:
        """The run's noise schedules and samplers."""
        return Samplers(config=self.config, student=self.student, teachers=self.teachers)

    @property
    def schedule(self) -> NoiseSchedule:
        """The student's noise schedule in training."""
        return self.samplers.schedule

    def source(self, who: str) -> RolloutSource:
        """Trajectories by ``student``, rewarded by the task if there is one, or by ``teacher``."""
        if who == "teacher":
            return self.samplers.of_teachers()
        return self.samplers.of_student(reward=self.task.reward if self.task else None)

    def noised(
        self,
        latents: Callable[[Sequence[Prompt], int], Sequence[Tensor | None]],
        *,
        others: RolloutSource | None = None,
    ) -> NoisedImages:
        """Clean images at random noise levels; in the schedule, their levels follow the sampler's steps."""
        steps = self.config.rollout.steps
        return NoisedImages(latents, self.samplers.training_levels, states=steps, first=steps, others=others)

    @cached_property
    def curriculum(self) -> Uniform:
        """The prompts of each step."""
        rollout = self.config.rollout
        batch, samples = rollout.prompts_per_step, rollout.rollouts_per_prompt
        return Uniform(self.prompts, batch=batch, samples=samples, seed=self.config.seed)

    # ----------------------------------------------------------------------------------------------------- the loss

    @property
    def weight(self) -> float:
        """``loss.weight``."""
        return self.config.loss.weight

    def view(self) -> View:
        """The teacher's conditioning."""
        return self.config.teacher.view.build()

    def terms(self) -> list[Term]:
        """The loss terms; the first is the signal's."""
        loss = self.config.loss
        terms = [loss.signal.build(self)]
        if loss.anchor:
            terms.append(self._anchor())
        if loss.reward:
            terms.append(self.reward_term(loss.reward.weight))
        if loss.reward_gradient:
            assert self.task is not None
            gradient = loss.reward_gradient
            objective = RewardGradient(schedule=self.schedule, model=self.student, reward=self.task.reward)
            teacher = RewardStates(gradient.steps)
            terms.append(Term("reward_gradient", "reward", teacher, PlainView(), objective, gradient.weight))
        return terms

    def _anchor(self) -> Term:
        """The distance to the initial student: on every state, or on those that no other term covers."""
        config = self.config
        guidance, rows = config.rollout.guidance, config.rollout.max_rows
        reference = DenoisingTeacher(self.initial, self.schedule, guidance=guidance, max_rows=rows)
        everywhere = config.teacher.view.type == "plain" and config.loss.signal.type != "image"
        view = PlainView() if everywhere else None
        return Term("anchor", "anchor", reference, view, self.distance, config.loss.anchor, self.step_weights)

    def reward_term(self, weight: float) -> Term:
        """The policy gradient of group-relative rewards."""
        objective = TransitionPolicyGradient(schedule=self.schedule)
        advantages = RewardAdvantage(GroupAdvantages())
        return Term(
            "policy_gradient", "reward", advantages, PlainView(), objective, weight, self.step_weights, EQUAL_REWARDS
        )

    @cached_property
    def distance(self) -> DenoisingDistance:
        """The run file's divergence, for the signal's term and the anchor."""
        return DenoisingDistance.of(self.schedule, self.config.loss.divergence, self.samplers.trained_K)

    @property
    def step_weights(self) -> Callable[[Sequence[Rollout], Signal], Tensor] | None:
        """``loss.step_weights`` as weights of a signal's positions."""
        weights = self.config.loss.step_weights
        if not weights:
            return None
        return lambda rollouts, signal: torch.tensor(weights, device=signal.position_T.device)[signal.position_T]

    @cached_property
    def initial(self) -> DenoisingModel:
        """A frozen copy of the initial student, made at the first use."""
        return frozen_copy(self.student)

    @cached_property
    def teacher_weights(self) -> tuple[DenoisingModel | None, EmaWeights | None]:
        """The student's own weights as teacher, and their running average; None if they do not teach."""
        if self.teachers or not self.config.loss.signal.reads_teacher:
            return None, None
        return self.config.teacher.weights.build(self)

    def teacher(self) -> Teacher:
        """The predictions of one teacher, or of several by domain."""
        config = self.config
        own, _ = self.teacher_weights
        models = {SINGLE: own} if own else self.teachers
        guidance, rows = config.teacher.guidance, config.rollout.max_rows
        teachers = {
            name: DenoisingTeacher(
                model,
                self.schedule,
                own=None if model.pipeline is self.student.pipeline else self.samplers.schedule_for(model),
                guidance=guidance,
                max_rows=rows,
            )
            for name, model in models.items()
        }
        return DomainTeachers(teachers, config.teacher.shares) if config.teacher.models else teachers[SINGLE]
