"""The reward alone: policy-gradient training without a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from opd.axes.context import RunContext
from opd.axes.signals.base import RatioClip, SignalConfig
from opd.config.base import Strict

if TYPE_CHECKING:
    from opd.types import Objective, Teacher


class RewardShape(Strict):
    """How rewards become advantages and advantages a gradient; for the signal and for ``loss.reward`` alike."""

    normalize_std: bool = True
    """Divide a group's advantages by their standard deviation (GRPO), or not (Dr. GRPO)."""
    drop_zero_variance_groups: bool = False
    """Leave groups of equal rewards out of the mean (DAPO's dynamic sampling, without drawing other prompts)."""
    mask_truncated: bool = False
    """Leave truncated rollouts out of the loss; their rewards still count in their groups (DAPO)."""
    overlong_penalty: int | None = Field(None, ge=1)
    """Number of last tokens before ``rollout.max_new_tokens`` over which the reward falls by 1 in all (DAPO)."""
    ratio_clip: RatioClip | None = None
    """PPO's clip of the importance ratio, [low, high], such as [0.2, 0.28]. The ratio is 1 on fresh rollouts."""
    max_ratio: float | None = Field(None, gt=0)
    """Truncates the importance ratio."""

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Groups of the student's own draws, and rewards."""
        return {"": ("student's rollouts", "sampling as scored", "several attempts", "rewards")}

    def make(self, run: RunContext) -> tuple[Teacher, Objective]:
        """Group-relative advantages, and the policy gradient."""
        from opd.errors import ConfigError
        from opd.losses.objectives import PolicyGradient
        from opd.teachers.sampled import GroupAdvantages

        longest, loss = run.config.rollout.max_new_tokens, run.config.loss
        if (self.overlong_penalty or 0) > longest:
            raise ConfigError(
                f"overlong_penalty={self.overlong_penalty} is above rollout.max_new_tokens={longest}. Fix: lower it"
            )
        advantages = GroupAdvantages(
            normalize_std=self.normalize_std,
            drop_zero_variance_groups=self.drop_zero_variance_groups,
            mask_truncated=self.mask_truncated,
            overlong_penalty=self.overlong_penalty,
            longest=longest,
        )
        objective = PolicyGradient(
            clip=self.ratio_clip,
            max_ratio=self.max_ratio,
            temperature=loss.temperature,
            chunk_tokens=loss.chunk_tokens,
        )
        return advantages, objective


class Reward(RewardShape, SignalConfig):
    """Group-relative policy optimisation: no teacher at all (GRPO, arXiv 2402.03300)."""

    type: Literal["reward"] = "reward"

    role = "reward"
    reads_teacher = False
    mixable = True
    without_teacher = "No teacher: rollouts with a higher reward than others of the same prompt are reinforced."

    def needs(self) -> dict[str, tuple[str, ...]]:
        """As for every reward, and no view."""
        return {"": ("plain view", *super().needs()[""])}

    def gradient(self) -> str:
        """The gradient's cell in the map."""
        clip = self.ratio_clip and ", clip " + "–".join(map(str, self.ratio_clip))
        return "policy gradient" + (clip or "")

    def distance(self, divergence: str) -> str:
        """What the loss measures."""
        return "policy-gradient loss"

    def build(self, run: RunContext) -> tuple[Teacher, Objective]:
        """Advantages and the policy gradient."""
        return self.make(run)
