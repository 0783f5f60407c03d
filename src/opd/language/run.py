"""A language run from its run file to the loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import torch

from opd.axes.base import Objects
from opd.axes.views.context import CONTEXT_FILE, ContextView
from opd.config.run import RunConfig
from opd.evaluation.doctor import findings
from opd.evaluation.memory import passes_ahead
from opd.evaluation.metrics import describe
from opd.language.checks import other_ends, padded
from opd.language.context import LanguageContext
from opd.language.divided import divide_models
from opd.language.load import load_run
from opd.language.measure import evaluation, extrapolation, gate
from opd.language.preview import preview
from opd.language.terms import loss_terms
from opd.loop import Loop
from opd.models.adapters import adapted, settings_of
from opd.models.forward import read_own
from opd.models.language import checkpoint_activations
from opd.models.loading import check_trainable
from opd.models.weights import label_of_start
from opd.output.model_card import model_card
from opd.output.provenance import TOKENIZER
from opd.output.result import Result
from opd.output.run_folder import write_text
from opd.output.run_log import RunLog
from opd.report.files import ROLLOUTS
from opd.report.record import Recorder
from opd.rollouts.ahead import Ahead, apart
from opd.rollouts.references import WithAnswers
from opd.rollouts.sampler import Sampler
from opd.rollouts.streaming import Streaming, asks_ahead
from opd.servers.model import ServedModel
from opd.servers.requests import Requests, measured
from opd.servers.rollouts import VllmEngine
from opd.training.checkpoint import Checkpoints
from opd.training.guards import Guards
from opd.training.optimizer import Optimizer
from opd.training.recovery import recovery
from opd.types import Metrics, Prompt, Rollout, RolloutSource, Term, View

PASSES = {"micro_batch", "micro_tokens", "gradient_checkpointing", "shard"}
"""Keys of ``optimizer`` that shape the forward and backward passes."""


@dataclass(frozen=True)
class LanguageRun:
    """A run of a causal language model that is loaded and checked."""

    context: LanguageContext

    @classmethod
    def load(cls, config: RunConfig, objects: Objects) -> Self:
        """Load everything the run names and check that it fits together.

        Raises:
            OpdError: the first problem, as one sentence.
        """
        return cls(load_run(config, objects))

    @property
    def config(self) -> RunConfig:
        """The run file."""
        return self.context.config

    @property
    def data(self) -> dict[str, list[Prompt]]:
        """The loaded prompts by the run file's key."""
        return {"prompts": self.context.prompts, "eval.prompts": self.context.held_out}

    @property
    def models(self) -> dict[str, str | list[float]]:
        """A label of the weights of each loaded model, and of the student's tokenizer, by the run file's key."""
        run = self.context
        kept = self.config.keeps_initial or adapted(run.student.model)
        found: dict[str, str | list[float]] = {"student": label_of_start(run.student.model)} if kept else {}
        for key, other in run.others().items():
            pooled = run.pool[key.removeprefix("teacher.models.")] if run.pool else other
            found[key] = pooled.server.label if isinstance(pooled, ServedModel) else label_of_start(pooled.model)
        return found | {f"student.{TOKENIZER}": run.chat.label}

    def assemble(self, log: RunLog) -> Loop:
        """The loop, ready to run from step 0."""
        run, config = self.context, self.config
        torch.manual_seed(config.seed + run.world.rank)
        check_trainable(run.student, key="student")
        if config.optimizer.gradient_checkpointing:
            checkpoint_activations(run.student)
        self._keep_context()
        log.warnings += [*padded(run), *other_ends(run)]
        terms = loss_terms(run)
        source, terms = config.rollout.source.attach(run, terms)
        source = with_servers(run, source, terms[0])
        ahead = source if isinstance(source, Ahead) else None
        if ahead:
            log.callbacks.append(ahead)  # for the end of the run
        further = passes_ahead(run) if isinstance(source, Streaming) else 0
        if config.loss.sft:
            source = WithAnswers(source, run.references())
        average = run.own_weights[1] if config.loss.signal.reads_teacher and not config.teacher.is_model else None
        log.notes += run.notes  # of the prompts, and of the engine that was built with the source
        divide_models(run)
        loop = Loop(
            student=run.student,
            sampler=source,
            forward=partial(
                read_own,
                run.student,
                size=config.optimizer.micro_batch,
                max_tokens=config.optimizer.micro_tokens,
                layers=config.loss.signal.layers(run),
                own=run.world.own,
                ahead=further,
            ),
            curriculum=run.curriculum,
            terms=terms,
            optimizer=Optimizer(run.student.model, world=run.world, **config.optimizer.model_dump(exclude=PASSES)),
            guards=Guards(
                **config.guards.model_dump(exclude={"recover"}),
                warmup=config.optimizer.warmup,
                num_prompts=max(len(run.held_out), 1),
            ),
            checkpoints=Checkpoints(
                Path(config.out) / "checkpoints",
                write=run.student.save_weights,
                world=run.world,
                beside=self._beside,
                **config.checkpoint.model_dump(exclude={"beside"}),
            ),
            log=log,
            steps=config.optimizer.steps,
            seed=config.seed,
            describe=partial(described, run.view(), run.servers),
            average=average,
            gate=gate(run, terms[0]),
            evaluate=evaluation(run, terms[0]),
            evaluate_every=config.eval.every,
            recovery=recovery(config),
            extrapolation=extrapolation(run),
            ahead=ahead,
            world=run.world,
        )
        for server in run.servers:
            server.tell = partial(loop.event, "server")
        return loop

    @property
    def _beside(self) -> bool:
        """Whether checkpoints are written beside the next steps."""
        asked = self.config.checkpoint.beside
        return asked if isinstance(asked, bool) else self.context.device != "cpu" and self.context.world.size == 1

    def recorder(self, loop: Loop) -> Recorder | None:
        """What records single tokens for the report; None if the run file leaves it out."""
        run, config = self.context, self.config
        if config.report is None:
            return None
        path = Path(config.out) / ROLLOUTS
        return Recorder(loop, run.student, preview(run), path, config.report.top_k)

    def card(self, result: Result) -> str:
        """The README.md of the finished run."""
        config = self.config
        facts = [
            f"Teacher: {config.teacher.named()}; view: {config.teacher.view.type}",
            f"Loss: {config.loss.signal.distance(config.loss.divergence.type)}, anchor {config.loss.anchor}",
            f"{result.steps} steps, {result.tokens:,} student tokens, {result.seconds:.0f} s",
        ]
        student = self.context.student
        if not adapted(student.model):
            return model_card(config, result, library="transformers", facts=facts)
        kind, base = settings_of(student.model).peft_type.value, settings_of(student.model).base_model_name_or_path
        facts.insert(0, f"Trained: a {kind} adapter of {base}{', merged' if student.merge else ''}")
        return model_card(config, result, library="transformers" if student.merge else "peft", facts=facts)

    def findings(self) -> Iterator[str]:
        """The lines of `opd doctor`."""
        return findings(self.context)

    def _keep_context(self) -> None:
        """Write the context of a context view into the run's folder, for a resumed run and for people."""
        view = self.context.view()
        if isinstance(view, ContextView):
            path = Path(self.config.out) / CONTEXT_FILE
            self.context.world.first(lambda: write_text(path, view.context + "\n"), "teacher.view")


def with_servers(run: LanguageContext, source: RolloutSource, main: Term) -> RolloutSource:
    """The source, with what servers do meanwhile: they score rollouts as they end, and write the next step's."""
    if not run.config.rollout.ahead:
        return scored_early(run, source, main)
    engine = run.engine(run.student)
    assert isinstance(source, Sampler)
    assert isinstance(engine, VllmEngine)
    source = scored_early(run, apart(source, engine), main)
    return Ahead(source, engine, run.curriculum, run.config.optimizer.steps)


def scored_early(run: LanguageContext, source: RolloutSource, main: Term) -> RolloutSource:
    """The source, which asks served teachers about each rollout as it ends, where nothing has to wait for others."""
    models = [model for model in run.others().values() if isinstance(model, ServedModel)]
    teacher, ahead = asks_ahead(main), run.config.rollout.ahead
    if not (models and teacher and main.view and run.config.teacher.view.alone and isinstance(source, Sampler)):
        return source
    if ahead and len(models) < len(run.others()):  # a teacher that is here computes on the run's own thread
        return source
    return Streaming(source, teacher, copy.deepcopy(main.view) if ahead else main.view, models)


def described(view: View, servers: Sequence[Requests], rollouts: Sequence[Rollout]) -> Metrics:
    """Metrics of a step's rollouts, and what its view and its servers report about them."""
    return describe(rollouts) | getattr(view, "metrics", {}) | measured(servers)
