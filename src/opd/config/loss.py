"""``loss``: the signal, the divergence, the weights of tokens, and the terms beside it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from opd.axes.divergence import DivergenceConfig
from opd.axes.signals import Full, SignalChoice, SignalConfig
from opd.axes.signals.reward import RewardShape
from opd.config.base import Strict


class TokenWeights(Strict):
    """Which of the tokens with a signal count, and how much."""

    first: int | None = Field(None, ge=1)
    """Number of the student's first tokens in a rollout that count; by default all."""
    after: int = Field(0, ge=0)
    """Number of the student's first tokens in a rollout that are left out."""
    last: int | None = Field(None, ge=1)
    """Number of the student's last tokens in a rollout that count; by default all."""
    skip_special: bool = False
    """Leave out the tokenizer's special tokens."""
    skip_tokens: tuple[str, ...] = ()
    """Leave out these tokens, as the tokenizer spells them."""
    outside_events: float = Field(1.0, ge=0)
    """Weight of tokens outside the spans of the environment's events."""
    importance: float = Field(0.0, ge=0)
    """γ of IW-OPD (arXiv 2606.22600): early tokens count up to 1 + γ. Needs the sampled tokens' log-ratios."""
    ramp: float = Field(0.0, ge=0)
    """Late tokens count more: 1 at the first, 1 + ramp at the last of a rollout."""
    fade: float | None = Field(None, ge=0)
    """δ of SOD (arXiv 2605.07725): a turn with larger log-ratios of student and teacher weighs less; at most 1 + δ."""

    @model_validator(mode="after")
    def _some_left(self) -> TokenWeights:
        if self.first is not None and self.first <= self.after:
            raise ValueError(f"first={self.first} and after={self.after} leave no token. Fix: set first above after")
        return self

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Weights that come from log-ratios."""
        used = {"importance": self.importance > 0, "fade": self.fade is not None}
        return {key: ("token ratios",) for key, holds in used.items() if holds}


class RewardTerm(RewardShape):
    """The reward beside another signal: a policy gradient of group-relative advantages."""

    weight: float = Field(1.0, gt=0)
    """Weight of the term."""


class LossConfig(Strict):
    signal: SignalChoice = Full()
    """The target of every token: full, top_k, sampled, hidden, other_tokenizer; or reward, sft (no teacher)."""
    divergence: DivergenceConfig = DivergenceConfig()
    """How two distributions are compared, for the signals full, top_k and sampled."""
    temperature: float = Field(1.0, ge=1e-4)
    """Divides the logits of student and teacher."""
    token_weights: TokenWeights = TokenWeights()
    """Weights of the signal's tokens."""
    aggregate: Literal["token", "sequence", "turn", "constant"] = "token"
    """The mean over all tokens (DAPO), of each rollout's mean (GRPO), of each turn's mean, or of each rollout's sum
    over ``rollout.max_new_tokens`` (Dr. GRPO). Also applies to ``loss.reward``."""
    weight: float = Field(1.0, gt=0)
    """Weight of the signal's loss."""
    anchor: float = Field(0.0, ge=0)
    """Weight of KL(student‖initial student); with a hint view on the tokens without a hint, otherwise on all."""
    sft: float = Field(0.0, ge=0)
    """Weight of supervised training on the reference answers, beside the student's own rollouts."""
    reward: RewardTerm | None = None
    """The reward beside the signal; a number is its weight, 0 leaves it out."""
    chunk_tokens: int | None = Field(None, ge=1)
    """Positions whose logits exist at one time; by default chosen from the vocabulary's size."""
    logits: Literal["float32", "bfloat16"] = "float32"
    """On a GPU, the dtype of the logits that a divergence compares: bfloat16 takes less time, and its gradient has
    about five times the error. A CPU always takes the models' own dtype."""

    @field_validator("reward", mode="before")
    @classmethod
    def _weight(cls, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return ({"weight": value} if value else None) if is_number else value

    @model_validator(mode="after")
    def _divergence_of_signal(self) -> LossConfig:
        if "divergence" not in self.model_fields_set:
            self.__dict__["divergence"] = self._usual_divergence()  # a frozen model's default
        return self

    def _usual_divergence(self) -> DivergenceConfig:
        signal: SignalConfig = self.signal
        return DivergenceConfig(type="reverse_kl") if signal.token_ratios else DivergenceConfig()

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Terms beside the signal."""
        needs: dict[str, tuple[str, ...]] = {}
        if self.sft:
            needs["sft"] = ("student's rollouts", "answers", "no recording")
        if self.signal.role == "reward" and self.reward:
            needs["reward"] = ("another signal",)
        if self.divergence != self._usual_divergence():
            needs["divergence"] = ("divergence",)
        if self.logits != "float32":
            needs["logits"] = ("distributions",)
        if self.signal.reads_teacher:
            needs["signal"] = ("another teacher",)
        return needs
