"""What changes from step to step besides weights; all of it goes into every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from opd.evaluation.metrics import Metrics


@dataclass
class State:
    """Plain numbers, lists and mappings: JSON gives back what it was."""

    step: int = 0
    """Optimizer steps made; a rollback puts back weights, not time."""
    tokens: int = 0
    """Student-chosen tokens rolled out, those to choose between extrapolations included."""
    signal_tokens: int = 0
    """Tokens some teacher gave a target for, those of an anchor aside."""
    seconds: float = 0.0
    before: Metrics = field(default_factory=dict)
    after: Metrics = field(default_factory=dict)
    best: Metrics = field(default_factory=dict)
    best_step: int = 0
    skipped: int = 0
    """Steps in a row whose loss or gradient was not finite."""
    collapsing: int = 0
    """Evaluations in a row at which the student had collapsed."""
    idle: int = 0
    """Steps in a row in which no teacher had anything to say."""
    refused: list[str] = field(default_factory=list)
    """Teachers that the gate keeps out, as its figures name them."""
    stopped_by: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    first: Metrics = field(default_factory=dict)
    """What the watch sees in the first rollouts, the initial student's."""
    recent: list[Metrics] = field(default_factory=list)
    """The same of the last steps since the run began or rolled back."""
    top: float = 0.0
    """Best accuracy of rollouts, as a median of recent steps."""
    healthy: int = 0
    """The last step whose weights' rollouts were as good as they had been."""
    proven: int = 0
    """The last step at which an evaluation found nothing wrong."""
    rollbacks: int = 0
    rolled_back: int = -1
    """Step of the last rollback."""
    lr_scale: float = 1.0
    """What rollbacks have made of the learning rate."""
    weights: dict[str, float] = field(default_factory=dict)
    """What rollbacks have made of terms' weights, by the term's name."""
