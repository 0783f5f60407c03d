"""A denoising run: loaded and checked, then assembled into a loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from opd.axes.base import Objects
from opd.config.diffusion import DiffusionConfig
from opd.data.prompts import HELD_OUT
from opd.diffusion.checks import check
from opd.diffusion.context import DenoisingContext
from opd.diffusion.data import load_image_prompts
from opd.diffusion.doctor import findings
from opd.diffusion.evaluation import ImageEvaluation, describe, mean_distance
from opd.diffusion.loading import load_student, load_teachers
from opd.diffusion.models import add_adapter
from opd.diffusion.report import Grids
from opd.diffusion.types import ImageTask
from opd.errors import ConfigError
from opd.loop import Loop
from opd.models.weights import label_of_start
from opd.output.model_card import model_card
from opd.output.run_log import RunLog
from opd.training.checkpoint import Checkpoints
from opd.training.guards import Guards
from opd.training.optimizer import Optimizer
from opd.training.recovery import recovery
from opd.types import Metrics, Prompt, Rollout, Term

if TYPE_CHECKING:
    from opd.output.result import Result


@dataclass(frozen=True, kw_only=True)
class DenoisingRun(DenoisingContext):
    """A run of a denoising model that is loaded and checked."""

    @classmethod
    def load(cls, config: DiffusionConfig, objects: Objects) -> DenoisingRun:
        """Load the models and prompts that a run file names, and check that they fit together.

        Raises:
            OpdError: the first problem, as one sentence.
        """
        if objects.task is not None and not hasattr(objects.task, "reward"):
            raise ConfigError(
                f"task: {objects.task!r} has no reward(), so it cannot judge images. Fix: give an ImageTask"
            )
        student = load_student(config, objects)
        notes: list[str] = []
        prompts, task = load_image_prompts(config.prompts, objects.prompts, key="prompts", note=notes.append)
        held_out: list[Prompt] = []
        held_out_task: ImageTask | None = None
        if config.eval.prompts:
            key = "eval.prompts" if objects.eval_prompts is None else "eval_prompts"
            held_out, held_out_task = load_image_prompts(
                config.eval.prompts, objects.eval_prompts, key=key, splits=HELD_OUT, note=notes.append
            )
        run = cls(
            config=config,
            student=student,
            teachers=load_teachers(config, student, objects),
            prompts=prompts,
            task=objects.task or task,
            held_out=held_out,
            held_out_task=objects.task or held_out_task,
            notes=notes,
        )
        if config.lora:
            torch.manual_seed(config.seed)
            add_adapter(student, **config.lora.model_dump())
        check(run)
        return run

    # ------------------------------------------------------------------------------------------------------ the loop

    @property
    def data(self) -> dict[str, list[Prompt]]:
        """The loaded prompts by the run file's key."""
        return {"prompts": self.prompts, "eval.prompts": self.held_out}

    @property
    def models(self) -> dict[str, str]:
        """What tells the weights that are loaded from others, by the run file's key."""
        kept = {"student": self.student} if self.config.lora or not self.teachers else {}
        models = {**kept, **{f"teacher.{name}": one for name, one in self.teachers.items()}}
        return {key: label_of_start(one.model) for key, one in models.items()}

    def assemble(self, log: RunLog) -> Loop:
        """The loop, ready to run from step 0."""
        config, student = self.config, self.student
        torch.manual_seed(config.seed)
        log.notes += self.notes
        if config.optimizer.gradient_checkpointing:
            student.model.enable_gradient_checkpointing()
        terms = self.terms()
        shape = {"micro_batch", "gradient_checkpointing"}
        return Loop(
            student=student,
            sampler=config.rollout.source.build(self),
            forward=partial(self.samplers.student_passes, size=config.optimizer.micro_batch),
            curriculum=self.curriculum,
            terms=terms,
            optimizer=Optimizer(student.model, **config.optimizer.model_dump(exclude=shape)),
            guards=Guards(
                **config.guards.model_dump(exclude={"recover"}),
                warmup=config.optimizer.warmup,
                num_prompts=max(len(self.held_out), 1),
            ),
            checkpoints=Checkpoints(
                Path(config.out) / "checkpoints", write=student.save_weights, **config.checkpoint.model_dump()
            ),
            log=log,
            steps=config.optimizer.steps,
            seed=config.seed,
            describe=describe,
            average=self.teacher_weights[1],
            evaluate=self.evaluation(terms[0]),
            evaluate_every=config.eval.every,
            recovery=recovery(config),
        )

    # --------------------------------------------------------------------------------------- evaluation and the report

    def evaluation(self, main: Term | None = None) -> ImageEvaluation | None:
        """What the run measures; None without held-out prompts.

        Args:
            main: the loss's main term; its distance is measured if no task judges images.
        """
        config, samplers = self.config, self.samplers
        if not self.held_out:
            return None
        distance = None
        if main is not None and self.held_out_task is None and config.loss.signal.reads_teacher:
            distance = partial(self._distance, main)
        return ImageEvaluation(
            model=self.student,
            prompts=[p for p in self.held_out for _ in range(config.eval.images_per_prompt)],
            student=samplers.of_student(held_out=True),
            task=self.held_out_task,
            teacher=samplers.of_teachers(held_out=True) if self.teachers and config.eval.teacher else None,
            distance=distance,
        )

    def _distance(self, main: Term, rollouts: Sequence[Rollout]) -> Metrics:
        """The loss on trajectories of the training sampler for the prompts of some rollouts."""
        rollout = self.config.rollout
        generated = self.samplers.of_student().rollout([r.prompt for r in rollouts], self.config.seed)
        reader = partial(self.samplers.student_passes, size=max(rollout.max_rows // rollout.steps, 1))
        assert main.view is not None
        return mean_distance(generated, reader=reader, teacher=main.teacher, view=main.view, objective=main.objective)

    def recorder(self, loop: Loop) -> Grids | None:
        """The sample grids; None if the run file leaves them out."""
        config, samplers = self.config, self.samplers
        if config.report is None:
            return None
        sees = config.teacher.view.type == "image"
        return Grids(
            folder=Path(config.out),
            loop=loop,
            model=self.student,
            student=samplers.of_student(held_out=True),
            teacher=samplers.of_teachers(held_out=True) if self.teachers else None,
            prompts=self.held_out or self.prompts,
            number=config.report.prompts,
            shown=[prompt for prompt in self.prompts if sees and prompt.data.get("image") is not None],
        )

    def card(self, result: Result) -> str:
        """The README.md of the finished run."""
        config, loss = self.config, self.config.loss
        teacher = config.teacher.named() if self.teachers or loss.signal.reads_teacher else "none"
        steps = config.eval.steps or config.rollout.steps
        facts = [
            f"Teacher: {teacher}; view: {config.teacher.view.type}",
            f"Loss: {loss.signal.type}, {loss.divergence}, anchor {loss.anchor}",
            f"{result.steps} steps, {result.tokens:,} denoising steps of the student, {result.seconds:.0f} s",
            f"Sampling: {steps} steps, guidance {config.rollout.guidance:g}, sigmas {config.rollout.sigmas}",
        ]
        return model_card(config, result, library="diffusers", facts=facts)

    def findings(self) -> Iterator[str]:
        """The lines of `opd doctor`."""
        return findings(self)
