"""The teacher's log-probability of the sampled token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from opd.axes.context import RunContext
from opd.axes.signals.base import RatioClip, SignalConfig
from opd.config.base import Strict

if TYPE_CHECKING:
    from opd.types import Objective, Teacher, Term


class TeacherEntropy(Strict):
    """A further forward KL at tokens where the teacher is uncertain (arXiv 2603.07079)."""

    threshold: float = Field(0.8, ge=0)
    """Least entropy of the teacher, in nats."""
    k: int = Field(16, ge=1)
    """The teacher's likeliest tokens; all others together count as one more token."""
    weight: float = Field(1.0, gt=0)
    """Weight of the term."""


class Sampled(SignalConfig):
    """One sampled token estimates the reverse KL (Thinking Machines, On-Policy Distillation, 2025)."""

    type: Literal["sampled"] = "sampled"
    estimator: Literal["policy_gradient", "k2", "k3"] = "policy_gradient"
    """The log-ratio as an advantage, or an estimate of the divergence that is differentiated as it stands."""
    discount: float = Field(0.0, ge=0, le=1)
    """Discount of the advantages of later tokens in the same rollout; 0 leaves each token its own."""
    max_advantage: float | None = Field(None, gt=0)
    """Clips advantages on both sides, in nats."""
    ratio_clip: RatioClip | None = None
    """PPO's clip of the importance ratio, [low, high]. The ratio is 1 unless rollouts were recorded."""
    max_ratio: float | None = Field(None, gt=0)
    """Truncates the importance ratio."""
    baseline: bool = False
    """Subtract each position's mean log-ratio: less variance, the same mean (vOPD, arXiv 2605.07865)."""
    scale: float = Field(1.0, gt=0)
    """Factor on log teacher − log initial student; above 1 goes beyond the teacher (G-OPD, arXiv 2602.12125)."""
    teacher_entropy: TeacherEntropy | None = None
    """A further forward KL where the teacher is uncertain."""

    token_ratios = True
    mixable = True
    compares = True

    @model_validator(mode="after")
    def _fits(self) -> Sampled:
        shaping = ("discount", "max_advantage", "ratio_clip", "max_ratio", "baseline")
        key = next((k for k in shaping if getattr(self, k) != type(self).model_fields[k].default), None)
        if self.estimator != "policy_gradient" and key:
            raise ValueError(
                f"{key} shapes an advantage, and estimator={self.estimator} has none. Fix: leave one of them out"
            )
        if self.scale != 1 and self.baseline:
            raise ValueError(
                "scale and baseline: the baseline is the log-ratio to the teacher itself. Fix: leave one out"
            )
        return self

    def needs(self) -> dict[str, tuple[str, ...]]:
        """The student's own draws; single features need one teacher."""
        needs = {"": ("student's rollouts", "sampling as scored")}
        one = {"baseline": self.baseline, "teacher_entropy": self.teacher_entropy is not None}
        return needs | {key: ("one teacher",) for key, holds in one.items() if holds}

    @property
    def token_losses(self) -> bool:
        """A baseline or a discount makes the loss another quantity."""
        return not self.baseline and not self.discount

    @property
    def recordable(self) -> bool:
        """Baseline and teacher entropy need more than the recorded log-probabilities."""
        return not self.baseline and self.teacher_entropy is None

    @property
    def takes_older(self) -> bool:
        """A policy gradient has an importance ratio; the other estimators take each token for the student's own."""
        return self.estimator == "policy_gradient"

    def keeps_initial(self) -> bool:
        """A scale reads the initial student."""
        return self.scale != 1

    def words(self) -> str:
        """The signal's cell in the map."""
        return "sampled token"

    def gradient(self) -> str:
        """The gradient's cell in the map."""
        if self.estimator != "policy_gradient":
            return f"direct ({self.estimator})"
        clip = self.ratio_clip and "clip " + "–".join(map(str, self.ratio_clip))
        scale = f"scale {self.scale:g}" if self.scale != 1 else None
        return ", ".join(filter(None, ["policy gradient", clip, scale, "baseline" if self.baseline else None]))

    def label(self, divergence: str) -> str:
        """The name of its loss in the report."""
        return "policy-gradient loss" if self.estimator == "policy_gradient" else divergence

    def build(self, run: RunContext) -> tuple[Teacher, Objective]:
        """The teacher reduced to the drawn token, and the estimator."""
        from opd.losses.objectives import DirectEstimate, PolicyGradient
        from opd.teachers.by_domain import TeachersByDomain
        from opd.teachers.local import LocalTeacher, Once
        from opd.teachers.sampled import SampledTeacher

        whole, loss = run.teacher(), run.config.loss
        assert isinstance(whole, LocalTeacher | TeachersByDomain)
        teacher = SampledTeacher(
            whole if isinstance(whole, TeachersByDomain) else Once(whole),
            reference=run.scorer(run.initial) if self.scale != 1 else None,
            student=run.scorer(run.student) if self.baseline else None,
            scale=self.scale,
            arithmetic=run.config.experimental.combine == "arithmetic",
            temperature=loss.temperature,
        )
        common: dict[str, Any] = {"temperature": loss.temperature, "chunk_tokens": loss.chunk_tokens}
        if self.estimator != "policy_gradient":
            return teacher, DirectEstimate(estimator=self.estimator, **common)
        objective = PolicyGradient(
            discount=self.discount,
            max_advantage=self.max_advantage,
            clip=self.ratio_clip,
            max_ratio=self.max_ratio,
            **common,
        )
        return teacher, objective

    def more_terms(self, run: RunContext, main: Term, weights: Any) -> Sequence[Term]:
        """The term of ``teacher_entropy``; it reads what the main term's teacher has read already."""
        from dataclasses import replace

        from opd.losses import Support
        from opd.losses.token_weights import EntropyThreshold
        from opd.teachers.local import Once
        from opd.teachers.sampled import SampledTeacher
        from opd.types import Term

        settings = self.teacher_entropy
        if settings is None:
            return ()
        assert isinstance(main.teacher, SampledTeacher)
        assert isinstance(main.teacher.teacher, Once)
        # This term has no log-ratios, which these weights are made of, and selects tokens of its own.
        among = replace(weights, importance=0.0, fade=None, difficulty=None) if weights else None
        temperature = run.config.loss.temperature
        where = EntropyThreshold(entropy=settings.threshold, temperature=temperature, among=among, rows=run.world.rows)
        support = Support(settings.k, whose="teacher", rest="tail")
        objective = run.divergence("forward_kl", support=support)
        teacher = main.teacher.teacher
        return (Term("teacher_entropy", "distill", teacher, main.view, objective, settings.weight, where),)
