"""The run file of a denoising student: ``family: diffusion``. ``BaseRun`` has the keys that both families share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from opd.axes import needs
from opd.config.adapter import LowRank
from opd.config.base import Strict
from opd.config.run import BaseRun, PromptsConfig
from opd.config.teacher import TeacherModelConfig, shares_of
from opd.diffusion.axes import (
    POLICY_GRADIENT,
    FrozenWeights,
    PlainImageView,
    SeenByTeacher,
    SignalChoice,
    SourceChoice,
    StudentSource,
    TeacherPrediction,
    WeightsChoice,
)
from opd.diffusion.needs import FACTS

DISTANCES = {
    "transition": "half the squared distance of steps",
    "transition_kl": "KL of steps",
    "velocity": "squared distance of velocities",
    "x0": "squared distance of denoised means",
}
"""The divergences in words, for the map and the report."""


class AdapterConfig(LowRank):
    """Train low-rank adapters instead of the weights themselves (LoRA, arXiv 2106.09685), through peft."""

    targets: tuple[str, ...] = Field(("to_q", "to_k", "to_v", "to_out.0"), min_length=1)
    """Name endings of the linear layers that get an adapter."""


class SamplerConfig(Strict):
    """How trajectories are made; every visited state is a training position."""

    source: SourceChoice = StudentSource()
    """What is trained on: the student's trajectories (on-policy), the teacher's, or noised images."""
    prompts_per_step: int = Field(32, ge=1)
    """Number of prompts per step."""
    rollouts_per_prompt: int = Field(1, ge=1)
    """Number of trajectories per prompt."""
    steps: int = Field(10, ge=1)
    """Denoising steps K of a trajectory; for noised images, the number of states per image."""
    sigmas: Literal["even", "scheduler"] | tuple[float, ...] = "even"
    """Noise levels: 1, 1 − 1/K, …, 1/K before the scheduler's shift; the scheduler's own; or a list of K numbers."""
    noise: float = Field(0.0, ge=0)
    """Noise added at every step: a of Flow-GRPO for flow matching, η of DDIM. 0 is deterministic and has no density."""
    renoise: bool = False
    """Jump to the denoised mean and add fresh noise at every step, as samplers of consistency models do."""
    guidance: float = Field(1.0, ge=1)
    """Classifier-free guidance of the student, in rollouts and in the loss; 1 disables it."""
    max_rows: int = Field(256, ge=1)
    """Most states per forward pass of a sampler or teacher; lower it to save memory."""

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Noise and noise levels that fit the steps."""
        given = {"noise": self.noise > 0, "sigmas": not isinstance(self.sigmas, str)}
        facts = {"noise": ("scaled noise",), "sigmas": ("one noise level per step",)}
        return {key: facts[key] for key, holds in given.items() if holds}


class DenoisingTeacherConfig(Strict):
    weights: WeightsChoice = FrozenWeights()
    """The student's own weights as teacher: frozen, ema or live. Not with ``model`` or ``models``."""
    model: str | None = None
    """Another model that teaches: a pipeline's path or id, or the folder of a LoRA of the student."""
    models: dict[str, TeacherModelConfig] | None = Field(None, min_length=1)
    """Several teachers by name; each predicts for the prompts of its own domains. Predictions of teachers that share a
    domain are averaged by weight, which has the gradient of the mean of their losses."""
    view: SeenByTeacher = PlainImageView()
    """The teacher's conditioning: plain (the prompt), or image (the prompt and its image)."""
    guidance: float = Field(1.0, ge=1)
    """Classifier-free guidance of the teacher; 1 disables it."""

    def needs(self) -> dict[str, tuple[str, ...]]:
        """One kind of teacher."""
        given = {"weights": self.weights != FrozenWeights(), "model": self.model is not None}
        facts = {"weights": ("self-teacher",), "model": ("single teacher",)}
        return {key: facts[key] for key, holds in given.items() if holds}

    @property
    def is_model(self) -> bool:
        """Whether the teacher is another model, or several."""
        return self.model is not None or self.models is not None

    def words(self) -> str:
        """The teacher's cell in the map."""
        if self.models:
            several = any(len(shares) > 1 for shares in self.shares.values())
            return f"{len(self.models)} models, {'mean' if several else 'by domain'}"
        return "another model" if self.model else self.weights.words()

    def named(self) -> str:
        """The teacher by name, for the model card."""
        several = ", ".join(f"{name} ({one.model})" for name, one in (self.models or {}).items())
        return several or self.model or f"the student's own weights ({self.weights.type})"

    @property
    def shares(self) -> dict[str, dict[str, float]]:
        """By domain and name, each teacher's weight."""
        return shares_of(self.models)


class RewardTermConfig(Strict):
    """The policy gradient of rewards beside another signal (Flow-GRPO, arXiv 2505.05470)."""

    weight: float = Field(gt=0)
    """Weight of the term."""

    def needs(self) -> dict[str, tuple[str, ...]]:
        """A policy gradient of group-relative advantages."""
        return {"": POLICY_GRADIENT}


class RewardGradientConfig(Strict):
    """The reward's own gradient, through the denoised mean (ReFL, arXiv 2304.05977)."""

    weight: float = Field(gt=0)
    """Weight of the term."""
    steps: int = Field(1, ge=1)
    """Number of last states of each trajectory that get the gradient."""

    def needs(self) -> dict[str, tuple[str, ...]]:
        """States of the student's own that are trained on."""
        return {"": ("student's trajectories", "enough steps", "weighted last states")}


class DenoisingLossConfig(Strict):
    signal: SignalChoice = TeacherPrediction()
    """The target: the teacher's prediction, the clean image behind a noised one (image), or rewards alone (reward)."""
    divergence: Literal["transition", "transition_kl", "velocity", "x0"] = "transition"
    """Half the squared distance of the steps' means, the KL of their Gaussians (with ``rollout.noise``), or the mean
    squared distance of velocities or of denoised means (x0)."""
    weight: float = Field(1.0, gt=0)
    """Weight of the signal's term."""
    step_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Weights of the K states, first to last; a state of weight 0 is left out. By default all are 1."""
    anchor: float = Field(0.0, ge=0)
    """Weight of the distance to the initial student: on all states, or on those without a target from the teacher if it
    sees images."""
    reward: RewardTermConfig | None = None
    """The policy gradient of rewards beside the signal; a number is its weight, 0 leaves it out."""
    reward_gradient: RewardGradientConfig | None = None
    """The gradient of a differentiable reward beside the signal; a number is its weight, 0 leaves it out."""

    @field_validator("reward", "reward_gradient", mode="before")
    @classmethod
    def _weight(cls, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return ({"weight": value} if value else None) if is_number else value

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Steps for weights of steps, and a density for their KL."""
        needed: dict[str, tuple[str, ...]] = {}
        if self.step_weights is not None:
            needed["step_weights"] = ("trajectories", "one weight per step", "a weight above 0")
        if self.divergence == "transition_kl" and self.signal.reads_teacher:
            needed["divergence"] = ("density",)
        return needed


class DenoisingEvalConfig(Strict):
    prompts: PromptsConfig | None = None
    """Held-out prompts; without them nothing is measured."""
    every: int = Field(20, ge=1)
    """Steps between evaluations."""
    images_per_prompt: int = Field(1, ge=1)
    """Number of images generated per prompt."""
    steps: int | None = Field(None, ge=1)
    """Denoising steps; by default ``rollout.steps``."""
    teacher: bool = True
    """Measure images of the teacher once, for comparison."""


class GridConfig(Strict):
    """Sample grids in the run's folder and its report, generated from the same noise at every evaluation."""

    prompts: int = Field(8, ge=1)
    """Number of prompts shown."""


class DiffusionConfig(BaseRun):
    """A run of a denoising model; every key can be overridden as ``key.sub=value``."""

    family: Literal["diffusion"]
    """What is trained: a denoising model in a diffusers pipeline."""
    student: str
    """Path or id of a diffusers pipeline."""
    lora: AdapterConfig | None = None
    """Train low-rank adapters; by default all of the denoiser's weights."""
    prompts: PromptsConfig
    """Training prompts."""
    teacher: DenoisingTeacherConfig = DenoisingTeacherConfig()
    """What predicts at the student's states, and its conditioning."""
    loss: DenoisingLossConfig = DenoisingLossConfig()
    """The signal, the divergence, the weights of states, and further terms."""
    rollout: SamplerConfig = SamplerConfig()
    """The sampler of the student."""
    eval: DenoisingEvalConfig = DenoisingEvalConfig()
    """What is measured, on which prompts and how often."""
    report: GridConfig | None = GridConfig()
    """Sample grids and the page that shows them; ``false`` leaves them out."""
    text_tokens: int = Field(256, ge=0)
    """Tokens of the long text encoder, for pipelines that have one (T5 of SD3): their ``max_sequence_length``."""

    @property
    def may_anchor(self) -> bool:
        """Whether an anchor holds the student."""
        return self.loss.anchor > 0

    @property
    def images_per_step(self) -> int:
        """Images that the student draws in a step."""
        return self.rollout.prompts_per_step * self.rollout.rollouts_per_prompt

    def all_needs(self, key: str = "") -> Iterator[tuple[str, str]]:
        """Every need; those of the whole run last, as a wrong signal is the likelier mistake."""
        yield from super().all_needs(key)
        if self.guards.recover is not None:
            yield "guards.recover", "text"
        if self.teacher != DenoisingTeacherConfig():
            yield "teacher", "teacher in use"

    @model_validator(mode="after")
    def _fits_together(self) -> DiffusionConfig:
        needs.check(self, FACTS)
        return self
