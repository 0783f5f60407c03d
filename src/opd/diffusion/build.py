"""From what a denoising run names to the parts of its loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from opd.axes.views.plain import PlainView
from opd.config.diffusion import DiffusionConfig
from opd.data.curriculum import Uniform
from opd.diffusion.evaluation import ImageEvaluation, describe, mean_distance
from opd.diffusion.forward import student_pass
from opd.diffusion.models import DenoisingModel, frozen_copy
from opd.diffusion.objectives import DenoisingDistance, RewardGradient, TransitionPolicyGradient
from opd.diffusion.report import Grids
from opd.diffusion.sampler import DenoisingSampler, GeneratedImages, NoisedImages, PromptImages, TeacherSource, joined
from opd.diffusion.schedules import NoiseSchedule, schedule_of
from opd.diffusion.teachers import (
    DenoisingTeacher,
    DomainTeachers,
    ImageTarget,
    ImageView,
    NoisedImageView,
    RewardAdvantage,
    RewardStates,
)
from opd.diffusion.types import ImageTask
from opd.loop import Loop
from opd.models.copies import EmaWeights
from opd.output.model_card import model_card
from opd.output.run_log import RunLog
from opd.teachers.sampled import Outcome
from opd.training.checkpoint import Checkpoints
from opd.training.guards import Guards
from opd.training.optimizer import Optimizer
from opd.types import Metrics, Prompt, Rollout, RolloutSource, Signal, Teacher, Term

if TYPE_CHECKING:
    from opd.output.result import Result

EQUAL_REWARDS = (
    "the rewards were equal in every group. Fix: take prompts that some pictures get right, or raise "
    "rollout.rollouts_per_prompt"
)
ONE = "teacher"
"""The name of a teacher that is alone."""


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """A run of a denoising model, with everything it names."""

    config: DiffusionConfig
    student: DenoisingModel
    noising: NoiseSchedule | None = None
    """Every time that the student was trained on, for noised images."""
    prompts: list[Prompt]
    task: ImageTask | None
    held_out: list[Prompt]
    held_out_task: ImageTask | None
    teachers: Mapping[str, DenoisingModel] = field(default_factory=dict)
    """The models of ``teacher.model`` or ``teacher.models``."""

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """The student's sampler; behind its steps those of noised images, where there are such."""
        own = self.schedule_for(self.student)
        return joined(own, self.noising) if self.noising else own

    @cached_property
    def curriculum(self) -> Uniform:
        """Which prompts each step draws."""
        rollout = self.config.rollout
        return Uniform(self.prompts, batch=rollout.batch, samples=rollout.samples, seed=self.config.seed)

    @property
    def counts(self) -> list[bool]:
        """By step of the sampler, whether it is trained on."""
        weights = self.config.loss.step_weights
        return [w > 0 for w in weights] if weights else [True] * self.config.rollout.steps

    def assemble(self, log: RunLog) -> Loop:
        """Put the parts into a loop that is ready to run from step 0."""
        config, student = self.config, self.student
        torch.manual_seed(config.seed)
        if config.optimizer.gradient_checkpointing:
            student.model.enable_gradient_checkpointing()
        terms, average = self.terms()
        shape = {"micro_batch", "gradient_checkpointing", "extrapolate"}
        return Loop(
            student=student,
            sampler=self.sampler(),
            forward=self.reader(config.optimizer.micro_batch),
            curriculum=self.curriculum,
            terms=terms,
            optimizer=Optimizer(student.model, **config.optimizer.model_dump(exclude=shape)),
            guards=Guards(**config.guards.model_dump(exclude={"recover"}), num_prompts=max(len(self.held_out), 1)),
            checkpoints=Checkpoints(Path(config.out) / "checkpoints", every=config.checkpoint.every),
            log=log,
            steps=config.optimizer.steps,
            seed=config.seed,
            describe=describe,
            average=average,
            evaluate=self.evaluation(terms[0]),
            evaluate_every=config.eval.every,
        )

    def terms(self) -> tuple[list[Term], EmaWeights | None]:
        """The loss: its terms, and the running average of the student's weights if it teaches."""
        config, loss = self.config, self.config.loss
        everything, view = PlainView(), ImageView() if config.teacher.view == "image" else PlainView()
        frozen = loss.reads_teacher and config.teacher.weights == "frozen"
        initial = frozen_copy(self.student) if loss.anchor or frozen else None
        average = None
        teachers: Mapping[str, DenoisingModel] = self.teachers
        if loss.reads_teacher and config.teacher.weights != "model":
            one = initial if frozen else self.student
            if config.teacher.weights == "ema":
                one = frozen_copy(self.student)
                average = EmaWeights(one.model, self.student.model, config.teacher.ema_decay)
            assert one is not None
            teachers = {ONE: one}
        rewarded = RewardAdvantage(Outcome()), everything, TransitionPolicyGradient(schedule=self.schedule)
        weights = self._step_weights if loss.step_weights else None
        if loss.signal == "reward":
            terms = [Term("reward", "reward", *rewarded, loss.weight, weights, EQUAL_REWARDS)]
        elif loss.signal == "image":
            target = ImageTarget(self.schedule), NoisedImageView()
            terms = [Term("distill", "distill", *target, self.distance, loss.weight)]
        else:
            terms = [Term("distill", "distill", self._teacher(teachers), view, self.distance, loss.weight, weights)]
        if loss.anchor:
            assert initial is not None
            whole = config.teacher.view == "plain" and loss.signal != "image"
            guidance, rows = config.rollout.guidance, config.rollout.max_rows
            reference = DenoisingTeacher(initial, self.schedule, guidance=guidance, max_rows=rows)
            spared = everything if whole else None
            terms.append(Term("anchor", "anchor", reference, spared, self.distance, loss.anchor, weights))
        if loss.outcome:
            terms.append(Term("reward", "reward", *rewarded, loss.outcome, weights, EQUAL_REWARDS))
        if loss.reward_gradient:
            assert self.task is not None
            pleased = RewardGradient(schedule=self.schedule, model=self.student, reward=self.task.reward)
            states, weight = RewardStates(loss.reward_steps), loss.reward_gradient
            terms.append(Term("reward_gradient", "reward", states, everything, pleased, weight))
        return terms, average

    @cached_property
    def distance(self) -> DenoisingDistance:
        """The run file's divergence, of the teacher's term and the anchor's alike."""
        return DenoisingDistance.of(self.schedule, self.config.loss.divergence, self.counts_K)

    @property
    def counts_K(self) -> Tensor:
        """bool, over the whole schedule: noised images' steps always count."""
        rest = self.schedule.num_steps - self.config.rollout.steps
        return torch.tensor(self.counts + [True] * rest)

    def _step_weights(self, rollouts: Sequence[Rollout], signal: Signal) -> Tensor:
        weight_K = torch.tensor(self.config.loss.step_weights or (), device=signal.position_T.device)
        return weight_K[signal.position_T]

    def _teacher(self, models: Mapping[str, DenoisingModel]) -> Teacher:
        """One teacher, or several by domain."""
        config = self.config
        guidance, rows = config.teacher.guidance, config.rollout.max_rows
        teachers = {
            name: DenoisingTeacher(
                model, self.schedule, own=self._own_schedule(model), guidance=guidance, max_rows=rows
            )
            for name, model in models.items()
        }
        return DomainTeachers(teachers, config.teacher.shares) if config.teacher.models else teachers[ONE]

    def _own_schedule(self, model: DenoisingModel) -> NoiseSchedule | None:
        """A teacher's sampler where its scheduler is another than the student's."""
        return None if model.pipeline is self.student.pipeline else self.schedule_for(model)

    def schedule_for(self, model: DenoisingModel) -> NoiseSchedule:
        """The run's sampler as a model's own scheduler would step it."""
        rollout = self.config.rollout
        return schedule_of(
            model.pipeline.scheduler,
            steps=rollout.steps,
            sigmas=rollout.sigmas,
            noise=rollout.noise,
            renoise=rollout.renoise,
        )

    def reader(self, size: int | None = None) -> Any:
        """Lets the student read its own trajectories."""
        return partial(
            student_pass, self.student, schedule=self.schedule, guidance=self.config.rollout.guidance, size=size
        )

    def sampler(self) -> RolloutSource:
        """Who makes the trajectories to train on."""
        rollout = self.config.rollout
        reward = self.task.reward if self.task else None
        own = DenoisingSampler(
            self.student,
            self.sampling(),
            guidance=rollout.guidance,
            counts=self.counts,
            reward=reward,
            max_rows=rollout.max_rows,
        )
        if rollout.policy == "student":
            return own
        if rollout.policy == "teacher":
            return self.teacher_source(counts=self.counts)
        assert self.noising
        if rollout.source == "teacher":
            source = self.teacher_source()
            return NoisedImages(GeneratedImages(source), self.noising, states=rollout.steps, first=rollout.steps)
        latents = PromptImages(self.student)
        return NoisedImages(latents, self.noising, states=rollout.steps, first=rollout.steps, others=own)

    def sampling(self, model: DenoisingModel | None = None, *, held_out: bool = False) -> NoiseSchedule:
        """A model's sampler, by default the student's, in training, or on held-out prompts, where no noise is added."""
        rollout, number = self.config.rollout, self.config.eval.steps
        model = model or self.student
        if not held_out:
            return self.schedule_for(model)
        steps = number or rollout.steps
        sigmas = rollout.sigmas if steps == rollout.steps or isinstance(rollout.sigmas, str) else "even"
        return schedule_of(model.pipeline.scheduler, steps=steps, sigmas=sigmas, renoise=rollout.renoise)

    def teacher_source(self, *, held_out: bool = False, counts: Sequence[bool] | None = None) -> TeacherSource:
        """Trajectories by the teachers, each with the run's sampler as its own scheduler steps it."""
        config = self.config
        settings: dict[str, Any] = {"guidance": config.teacher.guidance, "max_rows": config.rollout.max_rows}
        samplers = {
            name: DenoisingSampler(model, self.sampling(model, held_out=held_out), counts=counts, **settings)
            for name, model in self.teachers.items()
        }
        return TeacherSource(samplers, config.teacher.shares)

    def evaluation(self, main: Term | None = None) -> ImageEvaluation | None:
        """What the run measures; None without held-out prompts.

        Args:
            main: the loss's main term, whose distance stands in where nothing judges.
        """
        config = self.config
        if not self.held_out:
            return None
        schedule = self.sampling(held_out=True)
        student = DenoisingSampler(
            self.student, schedule, guidance=config.rollout.guidance, max_rows=config.rollout.max_rows
        )
        distance = None
        if main is not None and self.held_out_task is None and config.loss.reads_teacher:
            distance = partial(self._distance, main)
        return ImageEvaluation(
            model=self.student,
            prompts=[p for p in self.held_out for _ in range(config.eval.samples)],
            student=student,
            task=self.held_out_task,
            teacher=self.teacher_source(held_out=True) if self.teachers and config.eval.teacher else None,
            distance=distance,
        )

    def _distance(self, main: Term, rollouts: Sequence[Rollout]) -> Metrics:
        """The loss on trajectories of the training's own sampler: the prompts are what is held out."""
        assert main.view is not None
        rollout, rows = self.config.rollout, self.config.rollout.max_rows
        sampler = DenoisingSampler(
            self.student, self.sampling(), guidance=rollout.guidance, counts=self.counts, max_rows=rows
        )
        drawn = sampler.rollout([r.prompt for r in rollouts], self.config.seed)
        reader = self.reader(max(rows // rollout.steps, 1))
        measure = partial(mean_distance, reader=reader, teacher=main.teacher, view=main.view)
        return measure(drawn, objective=main.objective)

    def recorder(self, loop: Loop) -> Grids | None:
        """What draws sample grids, unless the run file leaves them out."""
        config = self.config
        if config.report is None:
            return None
        schedule = self.sampling(held_out=True)
        student = DenoisingSampler(self.student, schedule, guidance=config.rollout.guidance)
        teacher = self.teacher_source(held_out=True) if self.teachers else None
        sees = config.teacher.view == "image"
        return Grids(
            folder=Path(config.out),
            model=self.student,
            student=student,
            teacher=teacher,
            prompts=self.held_out or self.prompts,
            number=config.report.prompts,
            loop=loop,
            shown=[prompt for prompt in self.prompts if sees and prompt.data.get("image") is not None],
        )

    def card(self, result: Result) -> str:
        """The README.md of the finished run."""
        config = self.config
        several = ", ".join(f"{name} ({expert.model})" for name, expert in (config.teacher.models or {}).items())
        own = f"the student's own weights ({config.teacher.weights})" if config.loss.reads_teacher else "none"
        facts = [
            f"Teacher: {several or config.teacher.model or own}; view: {config.teacher.view}",
            f"Loss: {config.loss.signal}, {config.loss.divergence}, anchor {config.loss.anchor}",
            f"{result.steps} steps, {result.tokens:,} denoising steps of the student, {result.seconds:.0f} s",
            f"To draw: {config.eval.steps or config.rollout.steps} steps, guidance {config.rollout.guidance:g}, sigmas "
            f"{config.rollout.sigmas}",
        ]
        return model_card(config, result, library="diffusers", facts=facts)

    def findings(self) -> Iterator[str]:
        """What `opd doctor` says."""
        config, model = self.config, self.student.model
        count = sum(p.numel() for p in model.parameters())
        yield f"student   {config.student}: {type(self.student.pipeline).__name__}, {count / 1e6:.2f} M in the denoiser"
        for name, teacher in self.teachers.items():
            yield f"teacher   {name}: {teacher.source}"
        if not self.teachers:
            yield f"teacher   {f'own weights, {config.teacher.weights}' if config.loss.reads_teacher else 'none'}"
        yield f"prompts   {len(self.prompts)} to train on, {len(self.held_out)} held out"
        yield f"sampler   {config.rollout.steps} steps from noise {float(self.schedule.level_K[0]):.2f}"
        terms, _ = self.terms()
        shown = sorted(self.prompts, key=lambda p: p.data.get("image") is None)  # images may be what it goes by
        shown = shown[: max(32 // config.rollout.samples, 1)]
        rollouts = self.sampler().rollout([p for p in shown for _ in range(config.rollout.samples)], config.seed)
        own = [r for r in rollouts if r.source == "student"]
        if own:
            yield "rollouts  " + ", ".join(f"{name} {value:.3f}" for name, value in describe(own).items())
        assert terms[0].view is not None
        signal = terms[0].teacher.score(rollouts, terms[0].view.segments(rollouts))
        if len(signal):
            view, objective = terms[0].view, terms[0].objective
            found = mean_distance(
                rollouts, reader=self.reader(), teacher=terms[0].teacher, view=view, objective=objective
            )
            yield f"signal    {len(signal)} states, aligned; loss {found['distance']:.4f} a state"
        else:
            yield f"WARNING   no target for these trajectories: {terms[0].if_empty}"
