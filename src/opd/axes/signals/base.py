"""The base class of signals: the targets that a teacher gives, and the loss that fits them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from opd.axes.base import AxisValue
from opd.axes.context import RunContext
from opd.errors import ConfigError
from opd.types import Signal

if TYPE_CHECKING:
    from opd.types import Objective, Rollout, Segment, Teacher, Term

RatioClip = tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0)]]
"""How far below and above 1 an importance ratio counts, as PPO has it."""


class SignalConfig(AxisValue):
    """A signal. Class attributes say what it is, for the check of a run file; ``build`` makes its two parts."""

    axis = "loss.signal"
    role: ClassVar[Literal["distill", "reward"]] = "distill"
    """``Term.role`` of its loss: it learns a teacher's targets, or from rewards."""
    reads_teacher: ClassVar[bool] = True
    """Whether a model scores the rollouts."""
    distributions: ClassVar[bool] = False
    """Whether it compares distributions over the vocabulary."""
    compares: ClassVar[bool] = False
    """Whether ``loss.divergence`` applies."""
    token_ratios: ClassVar[bool] = False
    """Whether it has the sampled tokens' log-ratios (``SampledSignal``)."""
    mixable: ClassVar[bool] = False
    """Whether several teachers can give it together."""
    same_tokenizer: ClassVar[bool] = True
    """Whether the teacher has to have the student's tokenizer."""
    without_teacher: ClassVar[str] = ""
    """The report's sentence if no teacher is read."""
    reads_any_time: ClassVar[bool] = True
    """Whether the report may score other rollouts than those trained on."""

    @property
    def token_losses(self) -> bool:
        """Whether its loss at a token measures the distance to the teacher there."""
        return self.distributions

    @property
    def recordable(self) -> bool:
        """Whether recorded log-probabilities of the sampled or of the likeliest tokens are all it needs."""
        return False

    @property
    def takes_older(self) -> bool:
        """Whether its gradient is right on tokens that were drawn with weights one update older."""
        return not self.token_ratios  # any other distance is the same, whatever wrote the token

    def gradient(self) -> str:
        """The gradient's cell in the map of methods."""
        return "direct"

    def distance(self, divergence: str) -> str:
        """What its loss measures, given the name of ``loss.divergence``: for the map and the report."""
        return divergence if self.compares else self.words()

    def check_divergence(self, name: str) -> None:
        """Refuse a divergence that cannot do what the settings ask of it, before any model is loaded.

        Raises:
            ConfigError: the sentence names the setting.
        """

    def label(self, divergence: str) -> str:
        """The name of its loss in the report."""
        return self.distance(divergence)

    def keeps_initial(self) -> bool:
        """Whether it reads the initial student as well."""
        return False

    def layers(self, run: RunContext) -> list[int]:
        """The student's blocks, from 1, whose states the loss compares."""
        return []

    def build(self, run: RunContext) -> tuple[Teacher, Objective]:
        """The teacher that gives the signal, and the objective that turns it into a loss."""
        raise NotImplementedError

    def more_terms(self, run: RunContext, main: Term, weights: Any) -> Sequence[Term]:
        """Further terms that read the main term's teacher; ``weights`` are ``loss.token_weights``."""
        return ()


class GivenSignal(SignalConfig):
    """A (teacher, objective) pair that was given to ``opd.train``."""

    type: Literal["given from Python"] = "given from Python"

    def build(self, run: RunContext) -> tuple[Teacher, Objective]:
        """The pair as it was given."""
        teacher, objective = run.given("signal")
        return GivenTeacher(teacher), objective


@dataclass(frozen=True)
class GivenTeacher:
    """A user's own teacher, whose answers are checked."""

    teacher: Teacher

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> Signal:
        """What the teacher returns.

        Raises:
            ConfigError: it is no signal.
        """
        signal = self.teacher.score(rollouts, segments)
        if not isinstance(signal, Signal):
            raise ConfigError(
                f"signal[0]: {type(self.teacher).__name__}.score() returned {signal!r}. Fix: return an "
                "opd.types.Signal, an empty one if no position has a target"
            )
        return signal
