"""Guards: pure functions of metrics that say when a run has gone wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Figures = Mapping[str, float]

VALIDATION = (("accuracy", True), ("reverse_kl", False), ("text_loss", False))
"""What a run is judged by, the first that is measured: its name and whether more is better."""


def validation(metrics: Figures) -> tuple[str, bool] | None:
    """The metric a run is judged by."""
    return next(((name, more) for name, more in VALIDATION if name in metrics), None)


@dataclass(frozen=True)
class Guards:
    """Thresholds; the run file's ``guards`` explains each.

    Attributes:
        num_prompts: held-out prompts behind an accuracy, for its standard error.
    """

    drop: float = 0.5
    below_start: float = 0.05
    patience: int = 2
    max_skipped: int = 10
    max_idle: int = 5
    num_prompts: int = 1

    def better(self, metrics: Figures, best: Figures) -> bool:
        """Whether validation is better than the best so far."""
        judged = validation(best)
        if judged is None or judged[0] not in metrics:
            return False
        name, more = judged
        return metrics[name] > best[name] if more else metrics[name] < best[name]

    def collapsed(self, before: Figures, best: Figures, now: Figures) -> str | None:
        """A sentence that says what was seen if validation fell well below its best or below the start, else None.

        A fall that three standard errors of the measurement explain is no collapse. A divergence or a loss
        has collapsed when it is worse than at the start by the share ``drop``.
        """
        judged = validation(before)
        if judged is None:
            return None
        name, more = judged
        value, start, top = now[name], before[name], best[name]
        if math.isnan(value):
            return f"validation {name} is not a number"
        if not more:
            if value > start * (1 + self.drop):
                return f"validation {name} rose from {start:.3f} at the start to {value:.3f}"
            return None
        if value < start - max(self.below_start, 3 * self._standard_error(start)):
            return f"validation {name} fell from {start:.1%} at the start to {value:.1%}"
        if value < top - max(top * self.drop, 3 * self._standard_error(top)):
            return f"validation {name} fell from {top:.1%} at its best to {value:.1%}"
        return None

    def lasting(self, in_a_row: int) -> bool:
        """Whether a collapse has been seen often enough in a row to be no passing dip."""
        return in_a_row >= self.patience

    def skipped(self, in_a_row: int) -> bool:
        """Whether too many updates in a row were not finite."""
        return in_a_row >= self.max_skipped

    def idle(self, in_a_row: int) -> bool:
        """Whether no teacher has had anything to say for too long."""
        return in_a_row >= self.max_idle

    def _standard_error(self, accuracy: float) -> float:
        return math.sqrt(max(accuracy * (1 - accuracy), 0.0) / self.num_prompts)
