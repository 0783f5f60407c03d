"""What changes from step to step: the numbers, and the parts of a run that a checkpoint holds with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from opd.training.actions import RollBack
from opd.training.guards import quality, validation
from opd.types import Metrics

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class State:
    """Plain numbers, lists and mappings, which survive JSON unchanged."""

    step: int = 0
    """Steps taken. A rollback restores the weights but not this counter."""
    tokens: int = 0
    """Tokens the student generated for training, including those that compare extrapolations."""
    targets: dict[str, int] = field(default_factory=dict)
    """Number of tokens that had a target so far, by loss term; anchors are not counted."""
    seconds: float = 0.0
    before: Metrics = field(default_factory=dict)
    after: Metrics = field(default_factory=dict)
    best: Metrics = field(default_factory=dict)
    """Evaluation metrics before training, of the last evaluation, and of the best one."""
    best_step: int = 0
    skipped: int = 0
    """Steps in a row whose loss or gradient was not finite."""
    collapsing: float = 0
    """Evaluations in a row that looked collapsed, after the warm-up and without a rise; a mild one counts half."""
    stale: int = 0
    """Evaluations in a row that were not the best so far."""
    idle: int = 0
    """Steps in a row without a target for any token."""
    refused: list[str] = field(default_factory=list)
    """Teachers that the gate excludes, by the suffix of their metrics."""
    stopped_by: str | None = None
    """The guard that ended the run; None while it runs and after its last step."""
    events: list[dict[str, Any]] = field(default_factory=list)

    first: Metrics = field(default_factory=dict)
    """Watched metrics of the initial student's rollouts."""
    recent: list[Metrics] = field(default_factory=list)
    """Watched metrics of the last steps, since the start or the last rollback."""
    top: float = 0.0
    """Best accuracy, or else mean reward, of rollouts, as a median of recent steps."""
    healthy: int = 0
    """The last step whose weights generated rollouts no worse than before."""
    proven: int = 0
    """The last step at which an evaluation found nothing wrong."""
    rollbacks: int = 0
    rolled_back: int = -1
    """Step of the last rollback; -1 for none."""
    lr_scale: float = 1.0
    """Factor on the learning rate, lowered by rollbacks."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weights of loss terms that rollbacks have changed, by name."""

    @property
    def taught(self) -> bool:
        """Whether any token of the run has had a target."""
        return any(self.targets.values())

    @property
    def ends_with_best(self) -> bool:
        """Whether the run ends with the best evaluated weights: it was stopped or rolled back, and they were judged."""
        return (self.stopped_by not in (None, "idle") or self.rollbacks > 0) and validation(self.best) is not None

    def rolled_back_to(self, saved: State, action: RollBack) -> None:
        """Note that the weights are those of an earlier state again. Steps and totals continue from here."""
        self.top = max(saved.top, quality(self.first) or 0.0)
        self.rolled_back = self.healthy = self.step
        self.proven = self.step if saved.step <= self.proven else self.proven
        self.skipped = self.collapsing = self.stale = self.idle = 0
        self.recent = []
        if action.resume:
            self.stopped_by = None
            self.rollbacks += 1
            self.lr_scale = action.lr_scale
            self.weights |= action.weights


class Stateful(Protocol):
    """A part of the run that changes from step to step, such as the optimizer."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything it has learned or counted, by name."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what ``tensors`` returned.

        Raises:
            ValueError: names or shapes differ.
        """
        ...


@dataclass(frozen=True)
class RunState:
    """Everything a resumed run needs.

    Attributes:
        model: the student; its trained parameters are saved.
        state: the numbers.
        parts: the rest, by the name of its file; None for a part that this run does not have.
    """

    model: nn.Module
    state: State
    parts: Mapping[str, Stateful | None]
