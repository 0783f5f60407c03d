"""What ``build`` of an axis value gets from the run; the context of each family implements it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from opd.diffusion.models import DenoisingModel
    from opd.diffusion.schedules import NoiseSchedule
    from opd.distributed import World
    from opd.losses.objectives import FullVocabulary
    from opd.models.chat import Chat
    from opd.models.language import LanguageModel
    from opd.teachers.local import LocalTeacher
    from opd.types import (
        Engine,
        HintAuthor,
        Objective,
        Prompt,
        Rollout,
        RolloutSource,
        Segment,
        Signal,
        Task,
        Teacher,
        Term,
        View,
    )


class RunContext(Protocol):
    """A loaded language run: models, prompts, and factories that apply the run file's settings."""

    @property
    def config(self) -> Any:
        """The run file, an ``opd.config.run.RunConfig``; that module reads the values of all axes, so none names it."""
        ...

    @property
    def student(self) -> LanguageModel: ...

    @property
    def chat(self) -> Chat:
        """The student's template."""
        ...

    @property
    def prompts(self) -> Sequence[Prompt]:
        """Training prompts."""
        ...

    @property
    def held_out(self) -> Sequence[Prompt]:
        """Held-out prompts."""
        ...

    @property
    def notes(self) -> list[str]:
        """Sentences that are reported once, when the run starts."""
        ...

    @property
    def task(self) -> Task | None:
        """Checks answers and reacts to turns; None if nothing checks the prompts."""
        ...

    @property
    def world(self) -> World:
        """The processes that share the run."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Every id that ends a turn of the student's."""
        ...

    def given(self, name: str) -> Any:
        """An object that was given to ``opd.train``: signal, view, author, engine or sampler."""
        ...

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of the first call of ``make`` for a name; a run makes it once."""
        ...

    def view(self) -> View:
        """The run's view."""
        ...

    def plain_segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        """Every rollout after its own prompt."""
        ...

    @property
    def scoring(self) -> LanguageModel:
        """The single model that teaches: another model, or the student's own weights."""
        ...

    @property
    def teacher_model(self) -> LanguageModel | None:
        """The model of ``teacher.model``; None for self-teachers and for several."""
        ...

    @property
    def initial(self) -> LanguageModel:
        """A frozen copy of the initial student, made once."""
        ...

    def frozen_copy(self) -> LanguageModel:
        """A copy of the student that does not train."""
        ...

    def teacher(self) -> Teacher:
        """What scores rollouts with whole distributions: one model, or several by domain."""
        ...

    def scorer(self, model: LanguageModel) -> LocalTeacher:
        """A ``LocalTeacher`` of one model, with the run's batch size."""
        ...

    def divergence(self, name: str | None = None, **settings: Any) -> FullVocabulary:
        """The run's divergence between whole distributions as an objective; ``name`` replaces ``loss.divergence``."""
        ...

    def among_teachers(self, divergence: FullVocabulary) -> Objective:
        """The same objective for the signal of one teacher or of several."""
        ...

    def source(self, who: str, *, prefix: tuple[int, int] | None = None) -> RolloutSource:
        """Rollouts by ``student``, ``teacher`` or ``references``, sampled as the run file says.

        Args:
            prefix: the most tokens and turns that the teacher writes first.
        """
        ...

    def first_rollouts(self, prompts: int, *, rollouts_per_prompt: int = 1) -> Sequence[Rollout]:
        """Rollouts of the initial student on the first training prompts, at temperature 1."""
        ...

    def author(self, config: Any, *, key: str) -> HintAuthor:
        """The hint author that ``config`` describes, or the one given from Python."""
        ...

    def load_model(self, name: str, *, key: str) -> LanguageModel:
        """A further frozen model, such as a critic."""
        ...

    def engine(self, model: LanguageModel) -> Engine:
        """What generates tokens with a model."""
        ...


class DenoisingRunContext(Protocol):
    """A loaded denoising run: models, and factories that apply the run file's settings."""

    @property
    def student(self) -> DenoisingModel: ...

    @property
    def initial(self) -> DenoisingModel:
        """A frozen copy of the initial student, made once."""
        ...

    @property
    def schedule(self) -> NoiseSchedule:
        """The student's noise schedule in training."""
        ...

    def source(self, who: str) -> RolloutSource:
        """Trajectories by ``student``, rewarded by the task if there is one, or by ``teacher``."""
        ...

    def noised(
        self,
        latents: Callable[[Sequence[Prompt], int], Sequence[Tensor | None]],
        *,
        others: RolloutSource | None = None,
    ) -> RolloutSource:
        """Clean images at random noise levels.

        Args:
            latents: the clean latent of each prompt, for a seed; None for a prompt without an image.
            others: makes the trajectories of prompts without an image.
        """
        ...

    def view(self) -> View:
        """The teacher's conditioning."""
        ...

    def teacher(self) -> Teacher:
        """Predictions of one teacher, or of several by domain."""
        ...

    @property
    def distance(self) -> Objective:
        """``loss.divergence``."""
        ...

    @property
    def weight(self) -> float:
        """``loss.weight``."""
        ...

    @property
    def step_weights(self) -> Callable[[Sequence[Rollout], Signal], Tensor] | None:
        """``loss.step_weights`` as weights of a signal's positions."""
        ...

    def reward_term(self, weight: float) -> Term:
        """The policy gradient of group-relative rewards."""
        ...
