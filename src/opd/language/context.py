"""A loaded language run: its models and prompts, and factories that apply the run file's settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from opd.axes.base import GIVEN, METHODS, Objects, check_methods
from opd.axes.views.plain import PlainView
from opd.config.run import RunConfig
from opd.data.curriculum import Curriculum
from opd.distributed import World, current
from opd.errors import ConfigError
from opd.language.lengths import Rendered
from opd.language.shard import check_shard
from opd.losses.objectives import FullVocabulary, SeveralTeachers
from opd.models.adapters import adapted
from opd.models.chat import Chat
from opd.models.copies import frozen_copy
from opd.models.ends import Stops, stops_of
from opd.models.language import LanguageModel
from opd.models.loading import load
from opd.models.pool import ModelPool
from opd.rollouts.references import ReferenceAnswers
from opd.rollouts.sampler import ALL_TURNS, Prefix, Sampler
from opd.servers.model import ServedModel
from opd.servers.requests import Requests
from opd.servers.rollouts import VllmEngine
from opd.teachers.by_domain import TeacherRollouts, TeachersByDomain
from opd.teachers.local import LocalTeacher
from opd.types import (
    Engine,
    HintAuthor,
    Objective,
    Prompt,
    Rollout,
    RolloutSource,
    Sampling,
    Segment,
    Task,
    Teacher,
    View,
)


@dataclass(frozen=True, kw_only=True)
class LanguageContext:
    """Implements ``opd.axes.context.RunContext``; ``opd.language.load`` makes it."""

    config: RunConfig
    objects: Objects
    student: LanguageModel
    base: LanguageModel | None = None
    """The frozen base of a new adapter, around the student's own tensors; None for any other student."""
    chat: Chat
    prompts: list[Prompt]
    curriculum: Curriculum
    task: Task | None
    held_out: list[Prompt]
    held_out_task: Task | None
    training: Rendered
    """The training prompts as the student reads them."""
    notes: list[str]
    """Sentences about the prompts: what was left out or changed."""
    device: str
    teacher_model: LanguageModel | None = None
    """The model of ``teacher.model``; None for self-teachers, several teachers and a gated one."""
    pool: ModelPool | None = None
    """The models of ``teacher.models``, or the gated one."""
    shares: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By domain and name, each teacher's weight."""
    world: World = field(default_factory=current)
    """The processes that share the run."""
    made: dict[str, Any] = field(default_factory=dict)
    """Results of ``once``."""

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every id that ends a turn of the student's."""
        return self.stops(self.student).ids

    def stops(self, model: LanguageModel) -> Stops:
        """What ends a turn of a model: its own end tokens, and the run file's further stops."""
        return stops_of(model, self.config.rollout.stop)

    def given(self, name: str) -> Any:
        """An object that was given to ``opd.train``.

        Raises:
            ConfigError: none was.
        """
        found = getattr(self.objects, name)
        if found is None:
            raise ConfigError(
                f"'{GIVEN}': opd.train got no {name}. Fix: call opd.train({name}=…), or name another value"
            )
        return found

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of the first call of ``make`` for a name."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    # Models

    @cached_property
    def initial(self) -> LanguageModel:
        """The student before the first step: a frozen copy, or the base of a new adapter, which needs none."""
        return self.base or self.frozen_copy()

    def frozen_copy(self) -> LanguageModel:
        """A copy of the student that does not train. If both will be divided they share their weights until then."""
        return frozen_copy(self.student, shared=self.groups > 0)

    @property
    def groups(self) -> int:
        """Number of groups of ranks, each of which divides the weights of all models; 0 if every rank has them all."""
        return check_shard(self.config, self.world.size, adapter=adapted(self.student.model))

    @cached_property
    def own_weights(self) -> tuple[LanguageModel, Any]:
        """The self-teacher's model, and what keeps it up to date."""
        model, average = self.config.teacher.weights.build(self)
        return model, average

    @property
    def scoring(self) -> LanguageModel:
        """The single model that teaches.

        Raises:
            ConfigError: there are several, or one behind a gate.
        """
        if self.pool is not None:
            raise ConfigError(
                f"loss.signal={self.config.loss.signal.type} reads one model, and teacher.models or teacher.gate may "
                "name several. Fix: give teacher.model alone, or let the signal's build call run.teacher()"
            )
        return self.teacher_model or self.own_weights[0]

    def load_model(self, name: str, *, key: str) -> LanguageModel:
        """A further frozen model."""
        return load(name, key=key, device=self.device)

    def others(self) -> dict[str, LanguageModel]:
        """Each teacher that is a model of its own, by its key; of several, the model that holds its weights in turn."""
        pool = self.pool.models if self.pool else {}
        one = {"teacher.model": self.teacher_model} if self.teacher_model else {}
        return one | {f"teacher.models.{name}": model for name, model in pool.items()}

    @property
    def servers(self) -> list[Requests]:
        """The clients of all servers."""
        served = [model.server.requests for model in self.others().values() if isinstance(model, ServedModel)]
        engine = self.made.get("engine")
        return served + ([engine.requests] if isinstance(engine, VllmEngine) else [])

    # Teachers, views and objectives

    def scorer(self, model: LanguageModel) -> LocalTeacher:
        """A teacher of one model, with the run's batch size."""
        return LocalTeacher(model, max_tokens=self.config.teacher.max_tokens)

    def teacher(self) -> Teacher:
        """One teacher of whole distributions, or several by domain."""
        if self.pool is None:
            return self.scorer(self.scoring)
        alternate = self.config.experimental.combine == "alternate"
        return TeachersByDomain(self.pool, self.shares, max_tokens=self.config.teacher.max_tokens, alternate=alternate)

    def divergence(self, name: str | None = None, **settings: Any) -> FullVocabulary:
        """The run's divergence between whole distributions; ``name`` replaces it."""
        loss = self.config.loss
        return FullVocabulary(
            divergence=name or loss.divergence.type,
            beta=loss.divergence.beta,
            temperature=loss.temperature,
            chunk_tokens=loss.chunk_tokens,
            logits=loss.logits,
            **settings,
        )

    def among_teachers(self, divergence: FullVocabulary) -> Objective:
        """The same objective for one teacher or for several."""
        if self.pool is None:
            return divergence
        combine = self.config.experimental.combine
        return SeveralTeachers(inner=divergence, combine="losses" if combine == "alternate" else combine)

    def view(self) -> View:
        """The run's view, made once."""
        config = self.config.teacher.view
        view: View = self.once("view", lambda: config.build(self))
        check_methods(view, METHODS["view"], key=f"teacher.view={config.type}: build()")
        return view

    def plain_segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        """Every rollout after its own prompt."""
        return PlainView().segments(rollouts)

    def author(self, config: Any, *, key: str) -> HintAuthor:
        """The hint author that ``config`` describes."""
        author: HintAuthor = config.build(self, key)
        check_methods(author, METHODS["author"], key=f"{key}={config.type}: build()")
        return author

    # Rollouts

    def engine(self, model: LanguageModel) -> Engine:
        """What generates tokens with a model; the student has one engine."""
        config = self.config.rollout.engine
        build = partial(config.build, self, model)
        engine: Engine = self.once("engine", build) if model is self.student else build()
        check_methods(engine, METHODS["engine"], key=f"rollout.engine={config.type}: build()")
        return engine

    @property
    def sampling(self) -> Sampling:
        """How the run file draws tokens in training."""
        return self.config.rollout.sampling

    def sampler(
        self,
        sampling: Sampling | None = None,
        *,
        held_out: bool = False,
        model: LanguageModel | None = None,
        prefix: tuple[int, int] | None = None,
        all_turns: bool = False,
    ) -> RolloutSource:
        """A sampler in the run's environment, of the student or another model.

        Args:
            sampling: by default temperature 1 over the whole vocabulary.
            held_out: for held-out prompts, with their task and length.
            model: writes instead of the student, with its own end tokens; with another tokenizer also its own template.
            prefix: the most tokens and turns that the teacher writes first.
            all_turns: allow all turns at once, whatever ``rollout.grow_turns_every`` says.
        """
        rollout, writer = self.config.rollout, model or self.student
        same_template = model is None or self.config.loss.signal.same_tokenizer
        budget = self.config.eval.max_new_tokens if held_out else None
        sampling, stops = sampling or Sampling(), self.stops(writer)
        beginning, models = None, [writer.model]
        if prefix:
            assert self.teacher_model
            engine = self.engine(self.teacher_model)
            ends = self.stops(self.teacher_model).ids
            beginning = Prefix(engine, sampling, tokens=prefix[0], turns=prefix[1], stop_ids=ends)
            models.append(self.teacher_model.model)
        sampler = Sampler(
            self.engine(writer),
            self.chat if same_template else Chat(writer.tokenizer),
            self.held_out_task if held_out else self.task,
            sampling=sampling,
            stop_ids=stops.ids,
            stop_texts=stops.texts,
            max_new_tokens=budget or rollout.max_new_tokens,
            max_turns=rollout.max_turns,
            grow_every=None if held_out or all_turns else rollout.grow_turns_every,
            prefix=beginning,
            source="student" if model is None else "teacher",
            max_length=writer.max_length,
        )
        return self.world.shared(sampler, *models)

    def source(self, who: str, *, prefix: tuple[int, int] | None = None) -> RolloutSource:
        """Rollouts by ``student``, ``teacher`` or ``references``, sampled as the run file says."""
        if who == "references":
            return self.references()
        if who == "teacher" and self.pool:
            return TeacherRollouts(self.pool, self.shares, lambda model: self.sampler(self.sampling, model=model))
        return self.sampler(self.sampling, model=self.teacher_model if who == "teacher" else None, prefix=prefix)

    def references(self) -> ReferenceAnswers:
        """The prompts' reference answers as rollouts."""
        return ReferenceAnswers(self.chat, self.task, max_length=self.student.max_length)

    def first_rollouts(self, prompts: int, *, rollouts_per_prompt: int = 1) -> list[Rollout]:
        """Rollouts of the student as it is on the first training prompts, at temperature 1."""
        repeated = [p for p in self.prompts[:prompts] for _ in range(rollouts_per_prompt)]
        return list(self.sampler().rollout(repeated, self.config.seed, ALL_TURNS))
