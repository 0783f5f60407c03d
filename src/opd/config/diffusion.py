"""The run file of a denoising student: ``family: diffusion``. What it shares with language models is in ``BaseRun``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from opd.config.base import Strict
from opd.config.run import BaseRun, PromptsConfig
from opd.config.teacher import TeacherModelConfig, shares_of


class AdapterConfig(Strict):
    """Train low-rank adapters instead of the weights themselves (LoRA, arXiv 2106.09685), through peft."""

    rank: int = Field(16, ge=1)
    """Of the matrices that are added."""
    alpha: int = Field(32, ge=1)
    """What is added counts alpha / rank times."""
    targets: tuple[str, ...] = Field(("to_q", "to_k", "to_v", "to_out.0"), min_length=1)
    """Ends of the names of the linear layers that get one."""


class SamplerConfig(Strict):
    """The student's own denoising, of which every visited state is a position."""

    policy: Literal["student", "teacher", "images"] = "student"
    """Whose states are trained on: the student's (on-policy), the teacher's, or noised images."""
    source: Literal["prompts", "teacher"] = "prompts"
    """Of noised images: the prompts' own, or what the teacher makes of them."""
    batch: int = Field(32, ge=1)
    """Prompts per step."""
    samples: int = Field(1, ge=1)
    """Trajectories per prompt."""
    steps: int = Field(10, ge=1)
    """Denoising steps of a trajectory; states of a noised image."""
    sigmas: Literal["even", "scheduler"] | tuple[float, ...] = "even"
    """Noise levels: 1, 1 − 1/K, …, 1/K before the scheduler's shift; the scheduler's own; or these."""
    noise: float = Field(0.0, ge=0)
    """Put in at every step: Flow-GRPO's a of flow matching, η of DDIM. 0 follows the ODE, which has no density."""
    renoise: bool = False
    """Jump to the denoised mean and add fresh noise at every step, as samplers of consistency models do."""
    guidance: float = Field(1.0, ge=1)
    """Classifier-free guidance of the student, in rollouts and in the loss; 1 is none."""
    max_rows: int = Field(256, ge=1)
    """States denoised at once."""

    @model_validator(mode="after")
    def _fits(self) -> SamplerConfig:
        if isinstance(self.sigmas, tuple) and len(self.sigmas) != self.steps:
            raise ValueError(f"sigmas has {len(self.sigmas)} noise levels, and steps is {self.steps}; make them equal")
        if self.renoise and self.noise:
            raise ValueError("renoise draws all noise anew, so there is none to scale; leave noise out")
        if self.source == "teacher" and self.policy != "images":
            raise ValueError(f"source says whose images are noised, and policy is {self.policy}; set policy=images")
        return self


class DenoisingTeacherConfig(Strict):
    weights: Literal["frozen", "ema", "live", "model"] = "frozen"
    """The student's initial weights, their moving average, the student itself, or other models."""
    model: str | None = None
    """For ``weights: model``: a pipeline's path or id, or the folder of a LoRA of the student's."""
    models: dict[str, TeacherModelConfig] | None = Field(None, min_length=1)
    """Several, by name: each reads the prompts of its own domains. Where several read one, their predictions are
    averaged by weight, whose loss has the gradient of the mean of their losses."""
    ema_decay: float = Field(0.9999, gt=0, lt=1)
    """Share of the average that stays at each step, for ``weights: ema``."""
    view: Literal["plain", "image"] = "plain"
    """What it sees beside the student's states: the prompt, or also the prompt's image. Prompts without a image
    then have no teacher but the anchor."""
    guidance: float = Field(1.0, ge=1)
    """Classifier-free guidance of the teacher; 1 is none."""

    @model_validator(mode="after")
    def _whole(self) -> DenoisingTeacherConfig:
        if self.model and self.models:
            raise ValueError("model and models: name one teacher or several; leave one of them out")
        named = self.model is not None or self.models is not None
        if self.weights == "model" and not named:
            raise ValueError("weights is 'model', so teacher.model has to name one, or teacher.models several")
        if self.weights != "model" and named:
            raise ValueError(f"a model is named, but weights is '{self.weights}'; set teacher.weights=model")
        return self

    @property
    def shares(self) -> dict[str, dict[str, float]]:
        """By domain and name, how much each of several teachers has to say."""
        return shares_of(self.models)


class DenoisingLossConfig(Strict):
    signal: Literal["prediction", "image", "reward"] = "prediction"
    """The teacher's prediction at the same states, the image that was noised (fine-tuning), or rewards alone."""
    divergence: Literal["transition", "transition_kl", "velocity", "x0"] = "transition"
    """Half the squared distance of the steps' means, the KL of their Gaussians (with ``rollout.noise``), or the mean
    squared distance of velocities or of denoised means."""
    weight: float = Field(1.0, gt=0)
    """Of the signal's term."""
    step_weights: tuple[float, ...] | None = None
    """Of the K states, first to last; a state of weight 0 is left out."""
    anchor: float = Field(0.0, ge=0)
    """Weight of the distance to the student's initial weights, where the teacher's view says nothing, or everywhere if
    it is plain."""
    outcome: float = Field(0.0, ge=0)
    """Weight of the policy gradient of rewards, compared among trajectories of one prompt (Flow-GRPO)."""
    reward_gradient: float = Field(0.0, ge=0)
    """Weight of the reward's own gradient, through the denoised mean (ReFL), where the task's reward has one."""
    reward_steps: int = Field(1, ge=1)
    """The last so many states of a trajectory get the reward's gradient."""

    @property
    def reads_teacher(self) -> bool:
        """Whether the signal's term asks a teacher."""
        return self.signal == "prediction"


class DenoisingEvalConfig(Strict):
    prompts: PromptsConfig | None = None
    """Held-out prompts; without them nothing is measured."""
    every: int = Field(20, ge=1)
    """Steps between evaluations."""
    samples: int = Field(1, ge=1)
    """Pictures per prompt."""
    steps: int | None = Field(None, ge=1)
    """Denoising steps; by default the rollout's."""
    teacher: bool = True
    """Measure the teacher's own images once, to compare with."""


class GridConfig(Strict):
    """Sample grids in the run's folder and its report, drawn from the same noise at every evaluation."""

    prompts: int = Field(8, ge=1)
    """Prompts that are shown."""


class DiffusionConfig(BaseRun):
    """A run of a denoising model; every key can be overridden as ``key.sub=value``."""

    family: Literal["diffusion"]
    student: str
    """Path or id of a diffusers pipeline."""
    lora: AdapterConfig | None = None
    """Train low-rank adapters; by default all of the denoiser's weights."""
    prompts: PromptsConfig
    """What the student draws in training."""
    teacher: DenoisingTeacherConfig = DenoisingTeacherConfig()
    """Who predicts at the student's states, and what it gets to see."""
    loss: DenoisingLossConfig = DenoisingLossConfig()
    """The signal, the divergence, where it counts and what is mixed in."""
    rollout: SamplerConfig = SamplerConfig()
    """How the student denoises."""
    eval: DenoisingEvalConfig = DenoisingEvalConfig()
    """What is measured, on which prompts, how often."""
    report: GridConfig | None = GridConfig()
    """Sample grids and the page that shows them; ``false`` leaves them out."""
    text_tokens: int = Field(256, ge=0)
    """Tokens of the long text encoder of pipelines that have one (SD3's T5): their ``max_sequence_length``."""

    @property
    def may_anchor(self) -> bool:
        """Whether an anchor holds the student."""
        return self.loss.anchor > 0

    @model_validator(mode="after")
    def _fits_together(self) -> DiffusionConfig:
        self._fits_states()
        self._fits_teacher()
        self._fits_rewards()
        if self.guards.recover:
            raise ValueError("guards.recover watches text, and is not there for diffusion. Fix: leave it out")
        return self

    def _fits_states(self) -> None:
        loss, rollout = self.loss, self.rollout
        if loss.step_weights and len(loss.step_weights) != rollout.steps:
            raise ValueError(
                f"loss.step_weights has {len(loss.step_weights)} weights for rollout.steps={rollout.steps}; make them "
                "equal"
            )
        if loss.step_weights and (min(loss.step_weights) < 0 or not max(loss.step_weights)):
            raise ValueError("loss.step_weights has to have no weight below 0 and one above; mend it")
        if (loss.signal == "image") != (rollout.policy == "images"):
            raise ValueError(
                f"loss.signal={loss.signal} with rollout.policy={rollout.policy}: a noised image is its own target, "
                "and a trajectory has none; set both loss.signal=image and rollout.policy=images, or neither"
            )
        if loss.signal == "image" and loss.divergence.startswith("transition"):
            raise ValueError(
                f"loss.divergence={loss.divergence} compares steps, and noised images make none; set velocity or x0"
            )
        if loss.signal == "image" and loss.step_weights:
            raise ValueError("loss.step_weights are a trajectory's, and noised images have no steps; leave it out")

    def _fits_teacher(self) -> None:
        teacher, loss = self.teacher, self.loss
        itself = teacher.weights in ("frozen", "live") and teacher.view == "plain" and teacher.guidance == 1
        if loss.reads_teacher and itself and self.rollout.guidance == 1:
            raise ValueError(
                f"teacher.weights={teacher.weights} with a plain view is the student itself, so there is nothing to "
                "learn; give teacher.view=image, teacher.guidance above 1, or teacher.weights=model"
            )
        writes = self.rollout.policy == "teacher" or self.rollout.source == "teacher"
        if writes and teacher.weights != "model":
            raise ValueError("a teacher that draws needs teacher.weights=model and teacher.model or teacher.models")
        if not loss.reads_teacher and not writes and teacher != DenoisingTeacherConfig():
            raise ValueError(f"loss.signal={loss.signal} asks no teacher; leave teacher out")

    def _fits_rewards(self) -> None:
        loss, rollout = self.loss, self.rollout
        rewarded = loss.signal == "reward" or loss.outcome > 0
        what = "loss.signal=reward" if loss.signal == "reward" else "loss.outcome"
        dense = loss.divergence == "transition_kl" and loss.signal == "prediction"
        if (rewarded or dense) and not (rollout.noise or rollout.renoise):
            key = what if rewarded else "loss.divergence=transition_kl"
            raise ValueError(f"{key} needs the density of every step, and rollout.noise=0 has none; set it, say to 0.7")
        if rewarded and rollout.samples < 2:
            raise ValueError(f"{what} compares trajectories of one prompt; set rollout.samples to 2 or more")
        if (rewarded or loss.reward_gradient) and rollout.policy != "student":
            key = what if rewarded else "loss.reward_gradient"
            raise ValueError(f"{key} is about the student's own trajectories; set rollout.policy=student")
        if loss.reward_steps > rollout.steps:
            raise ValueError(f"loss.reward_steps={loss.reward_steps} is more than rollout.steps={rollout.steps}")
        if loss.reward_gradient and loss.step_weights and not any(loss.step_weights[-loss.reward_steps :]):
            raise ValueError(
                f"loss.reward_gradient is of the last {loss.reward_steps} states, and loss.step_weights leaves them "
                "out; raise loss.reward_steps, or let them count"
            )
