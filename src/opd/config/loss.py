"""``loss``: the signal, the divergence, where it counts and what is mixed in."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from opd.config.base import Strict


class TopKConfig(Strict):
    """The tokens a divergence runs over, for ``signal: top_k``."""

    k: int = Field(ge=1)
    """How many tokens."""
    whose: Literal["teacher", "student", "union", "intersection"] = "teacher"
    """Whose k likeliest tokens."""
    rest: Literal["tail", "renormalise", "correct"] = "tail"
    """What becomes of the other tokens: one more outcome, left out of both distributions, or corrected for."""


class CrossConfig(Strict):
    """How tokens count that a teacher with another tokenizer has too, and those it has not, for ``signal: cross``."""

    matched_weight: float | None = Field(None, ge=0)
    """Of the JSD on common tokens; by default their share of the teacher's vocabulary, as in GOLD."""
    unmatched_weight: float | None = Field(None, ge=0)
    """Of the distance between the other tokens' probabilities, sorted by size (ULD); by default 1 less that share."""
    pieces: Literal["text", "observed"] = "observed"
    """Where one side has in pieces what the other has whole: as GOLD does, the first piece's whole distribution times
    the probabilities of the pieces that followed; or the probability of that text alone."""


class SampledConfig(Strict):
    """How the sampled token's log-probability becomes a gradient, for ``signal: sampled`` and ``reward``."""

    estimator: Literal["policy_gradient", "k2", "k3"] | None = None
    """The log-ratio as an advantage (the default), or an estimate of the divergence differentiated as it stands."""
    discount: float = Field(0.0, ge=0, le=1)
    """Of the advantages that come later in the same rollout."""
    max_advantage: float | None = Field(None, gt=0)
    """Cuts advantages off on both sides, in nats."""
    clip: tuple[float, float] | None = None
    """PPO's clip of the importance ratio, [low, high], such as [0.2, 0.28] (DAPO's clip-higher). A batch of rollouts
    makes one update, where the ratio is 1 and a clip changes nothing, unless rollouts were recorded
    (``rollout.offline``)."""
    max_ratio: float | None = Field(None, gt=0)
    """Truncates the importance ratio."""
    baseline: bool = False
    """Subtract each position's own mean log-ratio, minus the reverse KL: less variance, the same mean (vOPD)."""
    scale: float = Field(1.0, gt=0)
    """Of the reward log teacher − log initial student; above 1 the target lies beyond the teacher (G-OPD)."""
    by_deviation: bool = True
    """Divide a group's outcome advantages by their standard deviation (GRPO) or not (Dr. GRPO)."""
    skip_equal: bool = False
    """Leave groups out of the mean whose rewards are all equal: they have no advantage and only dilute it. DAPO's
    dynamic sampling, without drawing other prompts in their place."""
    skip_truncated: bool = False
    """Leave answers out that were cut off; their rewards still count in their groups (DAPO's overlong filtering)."""
    overlong: int | None = Field(None, ge=1)
    """The reward falls evenly, by 1 in all, over the last so many tokens before ``rollout.max_new_tokens`` (DAPO's soft
    overlong punishment)."""

    @property
    def about_outcome(self) -> str | None:
        """The key that shapes an outcome and nothing else, if one does."""
        keys = ("skip_equal", "skip_truncated", "overlong")
        return next((key for key in keys if getattr(self, key)), None)

    @property
    def direct(self) -> Literal["k2", "k3"] | None:
        """The estimate to differentiate, if it is not an advantage."""
        return None if self.estimator == "policy_gradient" else self.estimator

    @model_validator(mode="after")
    def _fits(self) -> SampledConfig:
        if self.direct:
            ours = {"discount": 0.0, "max_advantage": None, "clip": None, "max_ratio": None, "baseline": False}
            for key, default in ours.items():
                if getattr(self, key) != default:
                    raise ValueError(
                        f"{key} shapes an advantage, and estimator={self.estimator} has none; use policy_gradient"
                    )
        return self


class HardestConfig(Strict):
    """Only the tokens that are hardest for the student as it is; costs a forward pass of it (TIP, arXiv 2604.14084).

    A selection and no sample: what is left out adds nothing, so the loss is another one, with no importance correction.
    """

    by: Literal["divergence", "entropy"] = "divergence"
    """The loss at each token, for whole distributions; or how unsure the student is, for any signal."""
    share: float = Field(0.5, gt=0, lt=1)
    """Of a step's tokens that count otherwise."""


class PositionsConfig(Strict):
    """Which of the tokens that carry the signal count, and how much."""

    first: int | None = Field(None, ge=1)
    """Only the student's first so many tokens of a rollout."""
    after: int = Field(0, ge=0)
    """Leave out the student's first so many tokens of a rollout."""
    last: int | None = Field(None, ge=1)
    """Only the student's last so many tokens of a rollout."""
    skip_special: bool = False
    """Leave out the tokenizer's special tokens."""
    skip_tokens: tuple[str, ...] = ()
    """Leave out these tokens, as the tokenizer spells them."""
    outside_events: float = Field(1.0, ge=0)
    """Weight of tokens outside the spans that the environment noticed something about; 0 leaves them out."""
    hardest: HardestConfig | None = None
    """Only the hardest of them."""
    mean: Literal["token", "sequence", "turn", "constant"] = "token"
    """Over all tokens alike (DAPO); each rollout (GRPO) or turn as much as any other; or each rollout's sum over
    ``rollout.max_new_tokens`` (Dr. GRPO). Of ``loss.outcome`` too."""
    importance: float = Field(0.0, ge=0)
    """γ of IW-OPD: early tokens count up to 1 + γ, falling to 1 as the log-ratios to come run out."""
    ramp: float = Field(0.0, ge=0)
    """Late tokens count more: 1 at the first, 1 + ramp at the last of a rollout."""
    fade: float | None = Field(None, ge=0)
    """δ of SOD: a turn counts less the further the student has come from the teacher, and at most 1 + δ."""

    @property
    def by_log_ratio(self) -> str | None:
        """The key that goes by the sampled tokens' log-ratios, if one does."""
        return "importance" if self.importance else "fade" if self.fade is not None else None

    @model_validator(mode="after")
    def _fits(self) -> PositionsConfig:
        if self.first is not None and self.first <= self.after:
            raise ValueError(f"first={self.first} and after={self.after} leave no token; set first above after")
        return self


class BridgeConfig(Strict):
    """Frozen projections into a common space, for a teacher of another width or depth (OPRD-Bridge)."""

    rank: int = Field(8, ge=1)
    """Dimensions of that space."""
    prompts: int = Field(256, ge=1)
    """Training prompts whose rollouts they are fitted on before the first step."""


class HiddenConfig(Strict):
    """Which hidden states the student is to resemble, for ``signal: hidden`` (OPRD, arXiv 2606.06021)."""

    layers: tuple[int, ...] | None = None
    """The student's blocks, from 1; all by default. Of a teacher of another depth, those at the same relative depth."""
    normalise: bool = False
    """Compare directions alone; the loss is then smaller by orders of magnitude."""
    bridge: BridgeConfig | None = None
    """For a teacher of another width or depth."""


class UnsureConfig(Strict):
    """A forward KL more where the teacher is unsure, beside ``signal: sampled`` (arXiv 2603.07079)."""

    entropy: float = Field(0.8, ge=0)
    """Of the teacher, in nats, from which on it is unsure."""
    k: int = Field(16, ge=1)
    """The teacher's likeliest tokens; all others are one more outcome."""
    weight: float = Field(1.0, gt=0)
    """Of that term, beside the sampled token's."""


class LossConfig(Strict):
    divergence: str = "forward_kl"
    """forward_kl = KL(teacher‖student), reverse_kl = KL(student‖teacher), jsd, skew_forward, skew_reverse, alpha,
    total_variation, or one you registered."""
    signal: Literal["full", "top_k", "sampled", "hidden", "cross", "reward", "tokens"] = "full"
    """The teacher's whole distribution, its top k, its log-probability of the sampled token, its hidden states; the
    distribution of a teacher with another tokenizer (GOLD); the outcome alone (GRPO, no teacher); or the rollout's own
    tokens (supervised training, no teacher pass)."""
    top_k: TopKConfig | None = None
    """For ``signal: top_k``."""
    cross: CrossConfig = CrossConfig()
    """For ``signal: cross``."""
    sampled: SampledConfig = SampledConfig()
    """For ``signal: sampled`` and ``reward``, and for ``outcome``."""
    hidden: HiddenConfig = HiddenConfig()
    """For ``signal: hidden``."""
    unsure: UnsureConfig | None = None
    """Beside ``signal: sampled``: more where the teacher is unsure."""
    positions: PositionsConfig = PositionsConfig()
    """Weights of the signal's positions."""
    weight: float = Field(1.0, gt=0)
    """Of the term that the signal makes, beside anchor and outcome."""
    outcome: float = Field(0.0, ge=0)
    """Weight of the outcome reward, as a group-relative advantage on every token of the student's."""
    gold: float = Field(0.0, ge=0)
    """Weight of supervised training on the prompts' reference answers, beside the student's own rollouts."""
    beta: float = Field(0.5, gt=0, lt=1)
    """Mixture weight of jsd, skew (DistiLLM's α) and alpha."""
    clip: float | None = Field(None, gt=0)
    """The most that one token of the vocabulary adds to a position's divergence, in nats (OPSD)."""
    temperature: float = Field(1.0, gt=0)
    """Divides both models' logits in the divergence."""
    anchor: float = Field(0.0, ge=0)
    """Weight of KL(student‖initial student), on the tokens that carry no hint (with another view: on all)."""
    chunk_tokens: int | None = Field(None, ge=1)
    """Positions whose logits exist at one time; by default chosen from the vocabulary's size."""

    @property
    def reads_teacher(self) -> bool:
        """Whether a model has to score the rollouts."""
        return self.signal in ("full", "top_k", "sampled", "hidden", "cross")

    @model_validator(mode="after")
    def _fits(self) -> LossConfig:
        if (self.signal == "top_k") != (self.top_k is not None):
            raise ValueError("signal=top_k and top_k={k: …} go together; give both, or neither")
        if self.signal == "sampled" and self.divergence != "reverse_kl":
            raise ValueError(
                f"divergence={self.divergence} with signal=sampled: one sampled token estimates the reverse KL alone; "
                "set loss.divergence=reverse_kl, or loss.signal=full or top_k"
            )
        if self.positions.by_log_ratio and self.signal != "sampled":
            raise ValueError(
                f"positions.{self.positions.by_log_ratio} goes by the sampled tokens' log-ratios, and signal is "
                f"{self.signal}; set loss.signal=sampled"
            )
        hardest = self.positions.hardest
        if hardest and hardest.by == "divergence" and self.signal not in ("full", "top_k"):
            raise ValueError(
                f"positions.hardest.by=divergence compares whole distributions, and signal is {self.signal}; set "
                "loss.positions.hardest.by=entropy, or loss.signal=full or top_k"
            )
        if self.sampled.direct and self.signal not in ("sampled", "reward", "cross"):
            raise ValueError(
                f"sampled.estimator={self.sampled.direct} is of the sampled token's divergence, and signal is "
                f"{self.signal}; set loss.signal=sampled"
            )
        if self.sampled.scale != 1 and self.sampled.baseline:
            raise ValueError(
                "sampled.scale and sampled.baseline: the baseline is the mean log-ratio to the teacher itself; leave "
                "one of them out"
            )
        for key, off in (("scale", 1.0), ("baseline", False)):
            value = getattr(self.sampled, key)
            if value != off and self.signal != "sampled":
                raise ValueError(f"sampled.{key}={value} needs signal=sampled, and signal is {self.signal}")
        if self.sampled != SampledConfig() and self.signal not in ("sampled", "reward", "cross") and not self.outcome:
            raise ValueError(
                f"sampled shapes what one sampled token says, and signal is {self.signal}; set loss.signal=sampled, or "
                "leave loss.sampled out"
            )
        if self.sampled.about_outcome and self.signal != "reward" and not self.outcome:
            raise ValueError(
                f"sampled.{self.sampled.about_outcome} is about the outcome reward, and there is none; set "
                "loss.signal=reward or loss.outcome, or leave it out"
            )
        if self.hidden != HiddenConfig() and self.signal != "hidden":
            raise ValueError(f"hidden={{…}} needs signal=hidden, and signal is {self.signal}")
        if self.unsure and self.signal != "sampled":
            raise ValueError(
                f"unsure adds the teacher's distribution to signal=sampled, and signal is {self.signal}, which has it "
                "already or has no teacher; leave loss.unsure out"
            )
        if self.top_k and self.top_k.k == 1 and self.top_k.rest == "renormalise":
            raise ValueError(
                "top_k.k=1 with rest=renormalise compares one token that has all of the mass on both sides: the loss "
                "is 0 everywhere; take a larger k or rest=tail"
            )
        if self.clip is not None and self.signal != "full":
            raise ValueError(f"clip={self.clip} cuts a sum over the vocabulary, and signal is {self.signal}; set full")
        if self.signal == "reward" and self.sampled.direct:
            raise ValueError("signal=reward has an advantage and no divergence; set sampled.estimator=policy_gradient")
        if self.signal == "reward" and (self.sampled.discount or self.sampled.max_advantage):
            key = "discount" if self.sampled.discount else "max_advantage"
            raise ValueError(
                f"sampled.{key} shapes log-ratios, and signal=reward has none: every token of a rollout has the "
                "same advantage already; leave it out, or set loss.signal=sampled"
            )
        if self.signal == "reward" and self.outcome:
            raise ValueError("signal=reward is the outcome already; leave loss.outcome out")
        self._fits_cross()
        return self

    def _fits_cross(self) -> None:
        """Two vocabularies have no token-by-token log-ratio, and one divergence."""
        if self.signal != "cross":
            if self.cross != CrossConfig():
                raise ValueError(
                    f"cross is for a teacher with another tokenizer, and signal is {self.signal}; set "
                    "loss.signal=cross, or leave loss.cross out"
                )
            return
        if self.divergence != "jsd":
            raise ValueError(
                f"divergence={self.divergence} with signal=cross: tokens that both vocabularies have are compared by "
                "the JSD alone; set loss.divergence=jsd"
            )
        if not self.outcome and self.sampled != SampledConfig():
            raise ValueError(
                "sampled is about the sampled token's log-ratio, and signal=cross has none; leave loss.sampled out, or "
                "set loss.signal=sampled and take a teacher with the same tokenizer"
            )
