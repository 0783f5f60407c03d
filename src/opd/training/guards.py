"""Guards: pure functions of metrics that say when a run has gone wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

Figures = Mapping[str, float]

VALIDATION = (("accuracy", True), ("reverse_kl", False), ("text_loss", False), ("distance", False))
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
        if value < start - max(self.below_start, 3 * _standard_error(start, self.num_prompts)):
            return f"validation {name} fell from {start:.1%} at the start to {value:.1%}"
        if value < top - max(top * self.drop, 3 * _standard_error(top, self.num_prompts)):
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


WINDOW, LEAST = 5, 3
"""Steps whose median is judged, and how many there have to be: one odd batch is no sign."""

CHANCE = 2.5
"""Standard errors of one step's accuracy that are no fall: three of the difference between two medians of five."""


def fallen_to(first: float, now: float, share: float) -> bool:
    """Whether a figure is below this share of what it was at first."""
    return now < share * first


def grown_to(first: float, now: float, factor: float) -> bool:
    """Whether a figure is beyond so many times what it was at first."""
    return now > factor * first


def risen_by(first: float, now: float, much: float) -> bool:
    """Whether a rate is higher than at first by more than this."""
    return now > first + much


@dataclass(frozen=True)
class Symptom:
    """What a collapsing student's rollouts show.

    Attributes:
        figure: the metric it is about.
        words: what a sentence calls it, and how its values are written.
        shows: of the figure at first, now, and the threshold.
    """

    figure: str
    words: tuple[str, str]
    shows: Callable[[float, float, float], bool]


SYMPTOMS = {
    "kl_vanished": Symptom("kl", ("KL to the teacher", "{:.4f}"), fallen_to),
    "kl_exploded": Symptom("kl", ("KL to the teacher", "{:.4f}"), grown_to),
    "entropy_collapsed": Symptom("entropy", ("entropy", "{:.3f}"), fallen_to),
    "entropy_exploded": Symptom("entropy", ("entropy", "{:.3f}"), grown_to),
    "repeating": Symptom("repetition_rate", ("repetition rate", "{:.1%}"), risen_by),
    "too_long": Symptom("length", ("length", "{:.1f}"), grown_to),
    "truncated": Symptom("truncation_rate", ("truncation rate", "{:.1%}"), risen_by),
}
"""By name; ``Watch`` has a threshold of each name."""

OF_TEXT = ("too_long", "truncated", "repeating")
"""Symptoms that stand for themselves where no reward is known."""


def watched(metrics: Figures) -> dict[str, float]:
    """The figures of a step that ``Watch`` looks at; nothing where the student wrote no rollout.

    ``kl`` is per token of the student's, those included about which the teacher has nothing to say.
    """
    if "length" not in metrics:
        return {}
    figures = {name: metrics[name] for name in ("accuracy", *(s.figure for s in SYMPTOMS.values())) if name in metrics}
    if "distill_share" in metrics:
        figures["kl"] = metrics.get("distill", 0.0) * metrics["distill_share"]
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def typical(recent: Sequence[Figures]) -> dict[str, float]:
    """The median of each figure over the last ``WINDOW`` steps."""
    last = recent[-WINDOW:]
    return {name: median(f[name] for f in last if name in f) for name in sorted({n for f in last for n in f})}


@dataclass(frozen=True)
class Watch:
    """Signs of a collapse in a run's own rollouts; the run file's ``guards.recover`` explains each threshold.

    A run looks collapsed where a symptom shows and the student does worse. Either alone is what learning can look
    like: a student that has become its teacher has no KL left, and one that changes its way of working does worse for
    a while. Where no reward is known, or all are about 0, a symptom of the text stands for itself, and others count
    with a growing KL.

    Attributes:
        prompts: prompts per step, for the standard error of an accuracy.
    """

    worse: float = 0.1
    kl_vanished: float = 0.1
    kl_exploded: float = 3.0
    entropy_collapsed: float = 0.1
    entropy_exploded: float = 5.0
    too_long: float = 2.0
    truncated: float = 0.25
    repeating: float = 0.2
    prompts: int = 1

    def collapsed(self, first: Figures, top: float, recent: Sequence[Figures]) -> tuple[str, str] | None:
        """The symptom's name and a sentence with the figures if the last steps look collapsed, else None.

        Args:
            first: ``watched`` figures of the first rollouts.
            top: best accuracy of rollouts so far, as a median.
            recent: ``watched`` figures of the last steps.
        """
        if len(recent) < LEAST:
            return None
        now = typical(recent)
        name = next((n for n in self.symptoms(first, now) if self.harmed(n, first, top, now)), None)
        if name is None:
            return None
        figure, (words, form) = SYMPTOMS[name].figure, SYMPTOMS[name].words
        text = f"the rollouts' {words} went from {form.format(first[figure])} to {form.format(now[figure])}"
        if "accuracy" not in now:
            return name, text
        return name, f"{text}, and their accuracy from {top:.1%} at its best to {now['accuracy']:.1%}"

    def symptoms(self, first: Figures, now: Figures) -> list[str]:
        """Names of the symptoms that show."""
        known = {name: s for name, s in SYMPTOMS.items() if s.figure in first and s.figure in now}
        return [n for n, s in known.items() if s.shows(first[s.figure], now[s.figure], getattr(self, n))]

    def harmed(self, symptom: str, first: Figures, top: float, now: Figures) -> bool:
        """Whether the student does worse: by its reward, or by what stands for it where none could fall."""
        if "accuracy" in now and self.fell(top, 0.0, self.worse):
            return self.fell(top, now["accuracy"], self.worse)
        return symptom in OF_TEXT or ("kl" in first and "kl" in now and now["kl"] > first["kl"])

    def healthy(self, first: Figures, top: float, now: Figures) -> bool:
        """Whether one step's rollouts give no reason to doubt the weights that wrote them."""
        if "accuracy" in now and self.fell(top, 0.0, 0.0):
            return not self.fell(top, now["accuracy"], 0.0)
        return not self.symptoms(first, now)

    def fell(self, top: float, accuracy: float, share: float) -> bool:
        """Whether an accuracy is below its best by this share and by more than chance explains.

        Two right and two wrong answers more than there were keep the standard error above 0 at 0 % and 100 %.
        """
        chance = CHANCE * _standard_error((top * self.prompts + 2) / (self.prompts + 4), self.prompts)
        return accuracy < top - max(share * top, chance)


def _standard_error(accuracy: float, number: int) -> float:
    return math.sqrt(max(accuracy * (1 - accuracy), 0.0) / number)
