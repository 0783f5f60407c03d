"""The teacher gate: excludes teachers that are no better than the student, domain by domain."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from opd.errors import ConfigError
from opd.output.format import format_value
from opd.teachers.by_domain import Shares, TeachersByDomain, label_of
from opd.types import Metrics


class Gate:
    """Judges every teacher after each evaluation, and sets the shares of those that may teach.

    Args:
        teachers: the pool whose shares are set.
        shares: those of the run file.
        prompts: the number of held-out prompts of each domain.
        margin, overlap, by_quality: see ``GateConfig``.
    """

    def __init__(
        self,
        teachers: TeachersByDomain,
        shares: Shares,
        *,
        prompts: Mapping[str, int],
        margin: float = 0.0,
        overlap: float = 0.05,
        by_quality: bool = False,
    ) -> None:
        self.teachers = teachers
        self.shares = shares
        self.prompts = prompts
        self.margin = margin
        self.overlap = overlap
        self.by_quality = by_quality

    def __call__(self, metrics: Metrics, refused: Collection[str] | None) -> tuple[list[str], list[str]]:
        """Judge every teacher on each of its domains, and set the shares.

        Args:
            metrics: of an evaluation. A teacher without metrics is not excluded.
            refused: labels that the last judgement excluded; None for the first one.

        Returns:
            The labels excluded now, and a sentence for each teacher that was excluded or admitted again.

        Raises:
            ConfigError: the first judgement leaves a domain without a teacher.
        """
        now: list[str] = []
        changes: list[str] = []
        for domain, shares in self.shares.items():
            reasons = {name: self._against(metrics, domain, name, refused) for name in shares}
            for name, reason in reasons.items():
                label = label_of(self.shares, domain, name)
                was = refused is not None and label in refused
                now += [label] if reason else []
                if bool(reason) != was:
                    changes.append(
                        f"{name} does not teach {domain}: {reason}" if reason else f"{name} teaches {domain}"
                    )
            if refused is None and all(reasons.values()):
                raise ConfigError(
                    f"teacher.gate: no teacher is left for '{domain}': "
                    + "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
                    + ". Fix: name a better teacher, or leave the gate out"
                )
        self.apply(metrics, now)
        return now, changes

    def apply(self, metrics: Metrics, refused: Collection[str]) -> None:
        """Set the shares that follow from a judgement, also that of a resumed run."""
        self.teachers.set_shares(
            {
                domain: {
                    name: self._share(metrics, domain, name, share)
                    for name, share in shares.items()
                    if label_of(self.shares, domain, name) not in refused
                }
                for domain, shares in self.shares.items()
            }
        )

    def _share(self, metrics: Metrics, domain: str, name: str, share: float) -> float:
        gain = self._gain(metrics, domain, name)
        return share * max(gain, 1e-3) if self.by_quality and gain is not None else share

    def _against(self, metrics: Metrics, domain: str, name: str, refused: Collection[str] | None) -> str | None:
        """The reason to exclude a teacher, with the values; None for no reason."""
        label = label_of(self.shares, domain, name)
        common = metrics.get(f"teacher/overlap@16/{label}")
        if common is not None and common < self.overlap:
            return f"it shares {common:.0%} of the likeliest tokens with the student, less than {self.overlap:.0%}"
        gain = self._gain(metrics, domain, name)
        if gain is None:
            return None
        name = _judged(metrics, label)
        theirs = metrics[f"teacher_{name}/{label}"]
        teaches = refused is not None and label not in refused
        deviation = math.sqrt(max(theirs * (1 - theirs), 0.0) / max(self.prompts.get(domain, 0), 1))
        # A teacher that taught stays while it is about equal, also if both are always right.
        if gain >= -2 * max(deviation, self.margin) if teaches else gain > self.margin:
            return None
        return f"its {name} is {format_value(name, theirs)}, the student's {format_value(name, theirs - gain)}"

    def _gain(self, metrics: Metrics, domain: str, name: str) -> float | None:
        """The teacher's accuracy, or else its mean reward, minus the student's; None if either was not measured."""
        label = label_of(self.shares, domain, name)
        judged = _judged(metrics, label)
        theirs = metrics.get(f"teacher_{judged}/{label}")
        ours = metrics.get(f"{judged}/{domain}", metrics.get(judged))
        return None if theirs is None or ours is None else theirs - ours


def _judged(metrics: Metrics, label: str) -> str:
    """The metric that compares a teacher with the student."""
    return "accuracy" if f"teacher_accuracy/{label}" in metrics else "reward"
