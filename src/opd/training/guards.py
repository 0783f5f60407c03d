"""Guards: pure functions of metrics that say when a run has gone wrong. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from opd.output.format import METRICS, main_metric
from opd.training.actions import Continue, Stop

Values = Mapping[str, float]

RISE = 0.2
"""Share of what was lost by which an evaluation has to come back from the one before it to be no part of a collapse."""


def validation(metrics: Values) -> tuple[str, bool] | None:
    """The metric that judges the run, and whether more of it is better; None if none was measured."""
    name = main_metric(metrics)
    return (name, METRICS[name].better == "higher") if name else None


def better(metrics: Values, best: Values) -> bool:
    """Whether the metric that judged the best evaluation has improved on it."""
    judged = validation(best)
    if judged is None or judged[0] not in metrics:
        return False
    name, more = judged
    return metrics[name] > best[name] if more else metrics[name] < best[name]


@dataclass(frozen=True)
class Guards:
    """Thresholds; ``guards`` in the run file explains each.

    Attributes:
        warmup: steps of the learning rate's warm-up; no evaluation until its end counts as a collapse.
        num_prompts: number of held-out prompts, for the standard error of an accuracy.
    """

    drop: float = 0.5
    below_start: float = 0.05
    patience: int = 2
    max_skipped: int = 10
    max_idle: int = 5
    no_gain: int | None = None
    warmup: int = 0
    num_prompts: int = 1

    def after_idle_step(self, in_a_row: int) -> Continue | Stop:
        """Stop after ``max_idle`` steps in a row without a target."""
        if in_a_row < self.max_idle:
            return Continue()
        return Stop("idle", f"no token had a target in {in_a_row} steps in a row")

    def after_skipped_step(self, what: str, in_a_row: int, *, weights_finite: bool) -> Continue | Stop:
        """Stop if the weights are not finite, or after ``max_skipped`` updates in a row that were left out.

        Args:
            what: loss or gradient, whichever was not finite.
        """
        if not weights_finite:
            return Stop("non_finite", "weights of the student are not finite")
        if in_a_row >= self.max_skipped:
            return Stop("non_finite", f"the {what} was not finite for {in_a_row} steps in a row")
        return Continue()

    def after_evaluation(
        self, seen: str | None, in_a_row: float, *, best_step: int, last: bool, stale: int = 0
    ) -> Continue | Stop:
        """Stop after ``patience`` evaluations that ``counted`` counts, or a collapsed one at the end of the run.

        Args:
            seen: what ``collapsed`` returned for the last evaluation.
            in_a_row: what ``counted`` returned.
            best_step: step of the weights that are kept.
            stale: evaluations in a row that were not the best so far; after ``no_gain`` of them the run is over.
        """
        kept = f"the best weights, of step {best_step}, are kept"
        if seen and (last or in_a_row >= self.patience):
            return Stop("collapse", f"{seen}; {kept}")
        if self.no_gain is not None and stale >= self.no_gain and not last:
            return Stop("no_gain", f"no gain in {stale} evaluations in a row; {kept}")
        return Continue()

    def counted(
        self, in_a_row: float, seen: str | None, *, step: int, previous: Values, best: Values, now: Values
    ) -> float:
        """Evaluations that look collapsed, in a row, after the warm-up.

        One that has come back by ``RISE`` of what was lost, and by more than one standard error, is not counted: a dip
        passes, and a collapse goes on. An accuracy that has not lost the share ``drop`` of its best counts half.

        Args:
            in_a_row: the count before this evaluation.
            seen: what ``collapsed`` returned for it.
            previous: metrics of the evaluation before it.
        """
        if not seen or step <= self.warmup:
            return 0
        if self._rises(previous, best, now):
            return in_a_row
        kept = now.get("accuracy", math.nan) >= best.get("accuracy", math.nan) * (1 - self.drop)
        return in_a_row + (0.5 if kept else 1)

    def _rises(self, previous: Values, best: Values, now: Values) -> bool:
        """Whether the judged metric is coming back."""
        judged = validation(best)
        if judged is None or judged[0] not in previous:
            return False
        name, more = judged
        sign = 1 if more else -1
        lost, gain = sign * (best[name] - previous[name]), sign * (now[name] - previous[name])
        return gain > max(RISE * lost, _standard_error(previous[name], self.num_prompts) if more else 0.0)

    def unmeasured(self, before: Values, now: Values) -> str | None:
        """The judged metric if this evaluation did not measure it, so that ``collapsed`` cannot judge; else None."""
        judged = validation(before)
        return judged[0] if judged and judged[0] not in now else None

    def collapsed(self, before: Values, best: Values, now: Values) -> str | None:
        """A sentence with the values if validation fell well below its best or below the start, else None.

        A fall within three standard errors of the measurement is no collapse. A divergence or a loss has collapsed
        when it exceeds its value at the start by the share ``drop``, a mean reward when it has lost that share of its
        best or first value, whichever is larger in size. A metric that is missing is not judged.
        """
        judged = validation(before)
        if judged is None or judged[0] not in now:
            return None
        name, more = judged
        value, start, top = now[name], before[name], best[name]
        if math.isnan(value):
            return f"validation {name} is not a number"
        if not more:
            if value > start * (1 + self.drop):
                return f"validation {name} rose from {start:.3f} at the start to {value:.3f}"
            return None
        if name == "reward":
            chance = 3 * _standard_error(top, self.num_prompts)  # of rewards between 0 and 1; 0 for others
            lost = value < top - max(self.drop * max(abs(top), abs(start)), chance)
            return f"validation {name} fell from {top:.3f} at its best to {value:.3f}" if lost else None
        if value < start - max(self.below_start, 3 * _standard_error(start, self.num_prompts)):
            return f"validation {name} fell from {start:.1%} at the start to {value:.1%}"
        if value < top - max(top * self.drop, 3 * _standard_error(top, self.num_prompts)):
            return f"validation {name} fell from {top:.1%} at its best to {value:.1%}"
        return None


WINDOW, LEAST = 5, 3
"""Steps whose median is judged, and the fewest that can be judged, so that one odd batch changes nothing."""

HISTORY = 25
"""Steps that are remembered, for what a metric varies by from step to step."""

CHANCE = 2.5
"""Standard errors by which one step's accuracy may differ by chance: three of the difference of two medians of five."""

SPREAD = 3.5
"""Standard deviations of one step by which a symptom's metric has to differ: three of the difference between the first
step and a median of five."""


def fallen_to(first: float, now: float, share: float) -> bool:
    """Whether a metric is below this share of its first value."""
    return now < share * first


def grown_to(first: float, now: float, factor: float) -> bool:
    """Whether a metric is above this multiple of its first value."""
    return now > factor * first


def risen_by(first: float, now: float, points: float) -> bool:
    """Whether a rate exceeds its first value by more than this."""
    return now > first + points


@dataclass(frozen=True)
class Symptom:
    """A change in the rollouts that a collapsing student shows.

    Attributes:
        metric: its name in ``watched``.
        words: the metric's name in a sentence, and the format of its values.
        shows: whether it shows, given the metric's first value, its value now, and the threshold.
    """

    metric: str
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
"""By name; ``Watch`` has a threshold of the same name for each."""

OF_TEXT = ("too_long", "truncated", "repeating")
"""Symptoms that count without a reward that confirms them."""


def watched(metrics: Values, distill: str | None = "distill") -> dict[str, float]:
    """The metrics of a step that ``Watch`` uses; empty if the student generated no rollout.

    Args:
        distill: name of the loss term that compares student and teacher; None for none.

    Returns:
        ``accuracy``, ``reward``, the metric of each symptom, and ``kl``: that term's loss as a mean over all of the
        student's tokens, of which those without a target count as 0.
    """
    if "length" not in metrics:
        return {}
    names = ("accuracy", "reward", *(s.metric for s in SYMPTOMS.values()))
    values = {name: metrics[name] for name in names if name in metrics}
    if distill and f"{distill}_share" in metrics:
        values["kl"] = metrics.get(distill, 0.0) * metrics[f"{distill}_share"]
    return {name: value for name, value in values.items() if math.isfinite(value)}


def typical(recent: Sequence[Values]) -> dict[str, float]:
    """The median of each metric over the last ``WINDOW`` steps."""
    last = recent[-WINDOW:]
    return {name: median(f[name] for f in last if name in f) for name in sorted({n for f in last for n in f})}


def quality(metrics: Values) -> float | None:
    """The accuracy, or else the mean reward; None if nothing judged the rollouts."""
    return metrics.get("accuracy", metrics.get("reward"))


def scatter(history: Sequence[Values], name: str) -> float:
    """Standard deviation of a metric from step to step, by the run itself; 0 for fewer than ``WINDOW`` differences.

    From the median of absolute differences, which neither a trend nor one jump changes.
    """
    values = [metrics[name] for metrics in history if name in metrics]
    differences = [abs(after - before) for before, after in pairwise(values)]
    return median(differences) / 0.954 if len(differences) >= WINDOW else 0.0


@dataclass(frozen=True)
class Watch:
    """Signs of a collapse in the training rollouts; ``guards.recover.thresholds`` replaces its thresholds.

    A run looks collapsed if a symptom shows and the student got worse. Either alone also happens in healthy runs: the
    KL vanishes when the student equals its teacher, and accuracy can fall for a while when the student changes how it
    works. Without rewards, or if all are about 0, a symptom of ``OF_TEXT`` counts alone and any other counts if the KL
    has grown. A change that the metric's own scatter from step to step explains is no symptom.

    Attributes:
        worse: the student got worse if accuracy, or the mean reward, has lost this share of its best, and more than
            chance explains; without rewards, if the KL to the teacher is above the first step's.
        kl_vanished, kl_exploded: multiples of the first step's KL, below and above which it is a symptom.
        entropy_collapsed, entropy_exploded: the same for the entropy.
        too_long: multiple of the first step's mean length above which it is a symptom.
        truncated, repeating: rise of the share of truncated or repetitive rollouts above which it is a symptom.
        prompts: prompts per step, for the standard error of an accuracy.
        least: fewest steps that can be judged.
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
    least: int = LEAST

    def collapsed(self, first: Values, top: float, recent: Sequence[Values]) -> tuple[str, str] | None:
        """The symptom's name and a sentence with the values if the last steps look collapsed, else None.

        Args:
            first: ``watched`` metrics of the first rollouts.
            top: best accuracy, or else mean reward, of rollouts so far, as a median.
            recent: ``watched`` metrics of the last steps.
        """
        if len(recent) < self.least:
            return None
        now = typical(recent)
        name = next((n for n in self.symptoms(first, now, recent) if self.harmed(n, first, top, now, recent)), None)
        if name is None:
            return None
        metric, (words, form) = SYMPTOMS[name].metric, SYMPTOMS[name].words
        text = f"the rollouts' {words} went from {form.format(first[metric])} to {form.format(now[metric])}"
        if "accuracy" in now:
            return name, f"{text}, and their accuracy from {top:.1%} at its best to {now['accuracy']:.1%}"
        if "reward" in now:
            return name, f"{text}, and their mean reward from {top:.3f} at its best to {now['reward']:.3f}"
        return name, text

    def symptoms(self, first: Values, now: Values, history: Sequence[Values] = ()) -> list[str]:
        """Names of the symptoms that show, beyond the scatter of their metrics."""
        known = {name: s for name, s in SYMPTOMS.items() if s.metric in first and s.metric in now}
        return [
            name
            for name, symptom in known.items()
            if symptom.shows(was := first[symptom.metric], is_ := now[symptom.metric], getattr(self, name))
            and abs(is_ - was) > SPREAD * scatter(history, symptom.metric)
        ]

    def harmed(self, symptom: str, first: Values, top: float, now: Values, history: Sequence[Values] = ()) -> bool:
        """Whether the student got worse: by its rewards if there are any, else by a text symptom or a rising KL."""
        if "accuracy" in now and self.fell(top, 0.0, self.worse):
            return self.fell(top, now["accuracy"], self.worse)
        if "accuracy" not in now and "reward" in now:
            return self.lost(top, now["reward"], self.worse, history)
        return symptom in OF_TEXT or ("kl" in first and "kl" in now and now["kl"] > first["kl"])

    def healthy(self, first: Values, top: float, now: Values, history: Sequence[Values] = ()) -> bool:
        """Whether one step's rollouts are no worse than before: by their rewards, or without any by all symptoms."""
        if "accuracy" in now and self.fell(top, 0.0, 0.0):
            return not self.fell(top, now["accuracy"], 0.0)
        if "accuracy" not in now and "reward" in now:
            return not self.lost(top, now["reward"], 0.0, history)
        return not self.symptoms(first, now, history)

    def fell(self, top: float, accuracy: float, share: float) -> bool:
        """Whether an accuracy is below its best by this share and by more than chance.

        The standard error counts two right and two wrong answers extra, so that it is above 0 at 0 % and 100 %.
        """
        chance = CHANCE * _standard_error((top * self.prompts + 2) / (self.prompts + 4), self.prompts)
        return accuracy < top - max(share * top, chance)

    def lost(self, top: float, reward: float, share: float, history: Sequence[Values]) -> bool:
        """The same for a mean reward, whose chance is its scatter from step to step."""
        return reward < top - max(share * abs(top), CHANCE * scatter(history, "reward"))


def _standard_error(accuracy: float, number: int) -> float:
    return math.sqrt(max(accuracy * (1 - accuracy), 0.0) / number)
