"""The run file as a whole: prompts, optimizer, evaluation, guards, and what goes together."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from opd.config.base import Strict
from opd.config.loss import LossConfig
from opd.config.rollout import RolloutConfig
from opd.config.teacher import TeacherConfig


class PromptsConfig(Strict):
    """Where prompts come from: exactly one of ``task``, ``path``, ``dataset`` and ``mix``.

    A bare string is a path if it ends in .jsonl or .json, otherwise a dataset id; a list is a mix.
    """

    task: str | None = None
    """A task with its own environment and checker: ``tools``, ``math``, ``strings``, ``search`` or
    ``package.module:attribute``."""
    path: str | None = None
    """A JSONL file with ``prompt`` or ``messages``, and ``answer``, ``domain`` and ``id`` where there are such."""
    dataset: str | None = None
    """A Hugging Face dataset id or folder with the same columns."""
    subset: str | None = None
    """The dataset's configuration name."""
    split: str = "train"
    """Split of the task or dataset; a JSONL file has only one."""
    limit: int | None = Field(None, ge=1)
    """Use the first so many."""
    chat: bool | None = None
    """Wrap a ``prompt`` string as a user message; by default if the tokenizer has a chat template."""
    domain: str | None = None
    """What these prompts are about, where several teachers share the work; by default what each prompt says itself."""
    mix: tuple[PromptsConfig, ...] | None = Field(None, min_length=1)
    """Several sources, one prompt of each in turn; each keeps its own environment and checker."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return {"mix": value}
        return cls.source(value) if isinstance(value, str) else value

    @staticmethod
    def source(name: str) -> dict[str, str]:
        """The key that a bare string stands for."""
        return {"path": name} if name.endswith((".jsonl", ".json")) else {"dataset": name}

    @model_validator(mode="after")
    def _one_source(self) -> PromptsConfig:
        given = [k for k in ("task", "path", "dataset", "mix") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(
                f"needs exactly one of task, path, dataset and mix, and has {' and '.join(given) or 'none'}"
            )
        if self.mix and (others := sorted(self.model_dump(exclude_defaults=True).keys() - {"mix"})):
            raise ValueError(f"{others[0]} belongs into each source of the mix; put it there")
        return self


class ExtrapolateConfig(Strict):
    """Go further along the update so far where validation says so, after steps 1, 2, 4, 8, … (EffOPD)."""

    prompts: int = Field(50, ge=1)
    """Training prompts, drawn once, that decide: by greedy accuracy, or without answers by the divergence."""
    candidates: int = Field(5, ge=1)
    """The most candidates W + 2kΔ, k = 1, 2, …; the first that is no better ends the search."""


class OptimizerConfig(Strict):
    lr: float = Field(1e-5, gt=0)
    """Peak learning rate of AdamW."""
    steps: int = Field(100, ge=1)
    """Optimizer steps."""
    warmup: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Decay to zero after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's two moments."""
    weight_decay: float = Field(0.0, ge=0)
    """Of AdamW, decoupled from the gradient."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    micro_batch: int | None = Field(None, ge=1)
    """Rollouts per forward and backward pass; the result is that of the whole batch."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    extrapolate: ExtrapolateConfig | None = None
    """Skip ahead where validation allows it; for every recipe."""


class EvalConfig(Strict):
    prompts: PromptsConfig | None = None
    """Held-out prompts; without them nothing is measured."""
    every: int = Field(20, ge=1)
    """Steps between evaluations."""
    samples: int = Field(0, ge=0)
    """Also sample so many answers per prompt at temperature 1 and report their mean accuracy, avg@n."""
    divergence: bool | None = None
    """Reverse KL to the teacher on the student's own rollouts; by default where no answer can be checked."""
    diagnostics: int = Field(64, ge=0)
    """Roll out so many held-out prompts to see how student and teacher stand to each other, and measure the teacher's
    own accuracy once; 0 leaves it out. Not for hints from an endpoint, which every look would ask."""
    conflict: bool = False
    """Of several teachers: how far each two disagree on the same tokens, by domain, and the cosine of the gradients of
    each two domains. Every teacher reads every domain for it, at every evaluation."""
    text: str | None = None
    """JSONL with ``text``: report the student's loss on it, in nats per token."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Default: the rollout's."""


class RecoverConfig(Strict):
    """What to do instead of stopping, and when rollouts look like a collapse: where one of the symptoms shows and the
    student does worse, in the median of five steps. A symptom compares with the first step's rollouts.
    """

    times: int = Field(3, ge=1)
    """Go back and on so often; after that the run stops with its best weights."""
    lr: float = Field(0.3, gt=0, le=1)
    """Each rollback multiplies the learning rate with it."""
    anchor: float = Field(0.2, ge=0)
    """The least weight of ``loss.anchor`` after a rollback, doubled by each further one; needs a frozen copy of the
    student from the start. 0 leaves the anchor as it is."""
    worse: float = Field(0.1, gt=0, lt=1)
    """The student does worse when its rollouts' accuracy has lost this share of its best, and more than chance
    explains; without rewards, when the KL to the teacher is above the first step's."""
    kl_vanished: float = Field(0.1, gt=0, lt=1)
    """Symptom: the KL to the teacher is below this share of the first; not without rewards."""
    kl_exploded: float = Field(3.0, gt=1)
    """Symptom: the KL to the teacher is above so many times the first."""
    entropy_collapsed: float = Field(0.1, gt=0, lt=1)
    """Symptom: the entropy is below this share of the first."""
    entropy_exploded: float = Field(5.0, gt=1)
    """Symptom: the entropy is above so many times the first."""
    too_long: float = Field(2.0, gt=1)
    """Symptom: rollouts are longer than so many times the first. Without rewards it stands for itself."""
    truncated: float = Field(0.25, gt=0, lt=1)
    """Symptom: the share of rollouts cut off has risen by more than this. Without rewards it stands for itself."""
    repeating: float = Field(0.2, gt=0, lt=1)
    """Symptom: the share of repetitive rollouts has risen by more than this. Without rewards it stands for itself."""


class GuardsConfig(Strict):
    drop: float = Field(0.5, gt=0, le=1)
    """Stop when validation has lost this share of its best (accuracy), or the divergence has grown by as much."""
    below_start: float = Field(0.05, ge=0)
    """Stop when validation is this far below the start, and further than chance explains (three standard errors)."""
    patience: int = Field(2, ge=1)
    """Evaluations in a row that have to show it; the last one of a run counts alone."""
    max_skipped: int = Field(10, ge=1)
    """Stop after so many steps in a row whose loss or gradient is not finite."""
    max_idle: int = Field(5, ge=1)
    """Stop after so many steps in a row in which the teacher had nothing to say."""
    recover: RecoverConfig | None = None
    """Instead of stopping, go back to the last good checkpoint and on with more care; ``{}`` takes the defaults. How
    much a rollback loses is up to ``checkpoint.every``."""


class ReportConfig(Strict):
    """What ``report.html`` shows of single tokens; recorded at every evaluation."""

    prompts: int = Field(6, ge=1)
    """Held-out prompts that are rolled out and scored again and again, and as many of the training step's rollouts."""
    top_k: int = Field(8, ge=1)
    """Likeliest tokens kept of student and teacher at every position."""


class CheckpointConfig(Strict):
    every: int = Field(20, ge=1)
    """Steps between checkpoints."""


class MethodConfig(Strict):
    """What `opd methods` says about a recipe."""

    title: str
    """What sets it apart, in a few words."""
    summary: str
    """What happens in it, in a sentence or two."""
    source: str
    """Who published it."""
    reported: str = ""
    """The source's own figure."""
    used_by: str = ""
    """Who is reported to use it, and by whom."""


MAY_CHANGE = frozenset({"log", "threads", "checkpoint", "method", "device", "report"})
"""Keys of the run file that a resumed run may have changed; any other would make it another run."""


class BaseRun(Strict):
    """What every run has, whatever it trains."""

    family: Literal["language", "diffusion"] = "language"
    """What is trained: a causal language model, or a denoising model in a diffusers pipeline."""
    method: MethodConfig | None = None
    """What a recipe says about itself; a run does not need it."""
    student: str
    """Path or id of what is trained."""
    prompts: PromptsConfig
    """What it answers in training."""
    teacher: Strict
    loss: Strict
    rollout: Strict
    optimizer: OptimizerConfig = OptimizerConfig()
    """How the weights move."""
    eval: Strict
    guards: GuardsConfig = GuardsConfig()
    """When a run stops, or goes back."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """How often the run can be gone on with from."""
    report: Strict | None
    out: str
    """Folder of the run; it ends as an ordinary model folder."""
    seed: int = Field(0, ge=0)
    """Of prompts' order, rollouts and everything else that is drawn."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the forward passes; weights that train and all reductions stay float32."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; by default one for models below 20 M parameters, where more are slower."""
    log: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Loggers besides metrics.jsonl; one that is not installed is left out with a word."""

    @field_validator("report", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return {False: None, True: {}}[value] if isinstance(value, bool) else value


class RunConfig(BaseRun):
    """A whole run; every key can be overridden as ``key.sub=value``."""

    family: Literal["language"] = "language"
    """What is trained: a causal language model; ``diffusion`` has keys of its own."""
    student: str
    """Path or id of a Hugging Face causal language model."""
    prompts: PromptsConfig
    """What the student answers in training."""
    teacher: TeacherConfig = TeacherConfig()
    """Who scores the rollouts, and what it gets to see."""
    loss: LossConfig = LossConfig()
    """The signal, the divergence, where it counts and what is mixed in."""
    rollout: RolloutConfig = RolloutConfig()
    """Who writes completions, how many and how long."""
    eval: EvalConfig = EvalConfig()
    """What is measured, on which prompts, how often."""
    report: ReportConfig | None = ReportConfig()
    """The page that shows what the teacher said about every token; ``false`` leaves it out."""

    @property
    def may_anchor(self) -> bool:
        """Whether an anchor holds the student, or may do so after a rollback."""
        return self.loss.anchor > 0 or (self.guards.recover is not None and self.guards.recover.anchor > 0)

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        if self.rollout.offline and self.teacher.weights in ("ema", "live"):
            raise ValueError(
                f"rollout.offline asks the teacher once, and teacher.weights={self.teacher.weights} changes with the "
                "student; set teacher.weights=frozen or model"
            )
        if self.eval.divergence and not self.loss.reads_teacher:
            raise ValueError(
                f"eval.divergence needs a teacher, and loss.signal={self.loss.signal} has none; leave one of them out"
            )
        if self.rollout.begun_by_teacher and self.teacher.weights != "model":
            raise ValueError(
                f"rollout.{self.rollout.begun_by_teacher} needs teacher.weights=model and teacher.model, who writes it"
            )
        self._fits_several()
        if "teacher" in self.rollout.writers and self.teacher.weights != "model":
            key = "policy" if self.rollout.policy == "teacher" else "other"
            raise ValueError(f"rollout.{key}=teacher needs teacher.weights=model and teacher.model")
        if self.loss.signal == "tokens" and self.rollout.policy == "student":
            raise ValueError(
                "loss.signal=tokens on the student's own rollouts would train it on what it already does; "
                "set rollout.policy=teacher or rollout.policy=answers"
            )
        if not self.loss.reads_teacher and self.teacher.view.kind != "plain":
            raise ValueError(f"loss.signal={self.loss.signal} has no teacher pass, so teacher.view must be plain")
        self._fits_sampling()
        self._fits_curriculum()
        if self.rollout.offline and (self.loss.signal != "sampled" or self.loss.unsure or self.loss.sampled.baseline):
            what = "unsure" if self.loss.unsure else "sampled.baseline" if self.loss.sampled.baseline else "signal"
            raise ValueError(
                f"rollout.offline keeps the teacher's log-probabilities of the sampled tokens alone, and loss.{what} "
                "needs more; set loss.signal=sampled without unsure and baseline, or leave rollout.offline out"
            )
        if self.loss.gold and (self.rollout.writers != {"student"} or self.rollout.offline):
            raise ValueError(
                "loss.gold puts the reference answers beside the student's own rollouts; set rollout.policy=student, "
                "and leave rollout.off_policy and rollout.offline out"
            )
        feedback = self.teacher.view.feedback
        if feedback and feedback.environment == "" and self.rollout.samples < 2:
            raise ValueError(
                "teacher.view.feedback shows other attempts at the same prompt, and rollout.samples is 1; set it to 2 "
                "or more"
            )
        if self.loss.signal == "cross":
            self._fits_cross()
        if self.teacher.view.kind == "plain" and self.teacher.weights in ("live", "frozen") and self.loss.reads_teacher:
            raise ValueError(
                f"teacher.weights={self.teacher.weights} with a plain view is the student itself, so there is nothing "
                "to learn; give teacher.view=hint or privileged, or teacher.weights=model"
            )
        return self

    def _fits_several(self) -> None:
        """What asks for one teacher, known from the start to the end."""
        if self.teacher.gate and not (self.eval.prompts and self.eval.diagnostics):
            raise ValueError(
                "teacher.gate goes by what is measured on held-out prompts; give eval.prompts, and eval.diagnostics "
                "above 0"
            )
        if self.eval.conflict and (not self.teacher.models or not self.eval.prompts or not self.eval.diagnostics):
            raise ValueError(
                "eval.conflict compares several teachers on held-out prompts; give teacher.models, eval.prompts and "
                "eval.diagnostics above 0"
            )
        if self.eval.conflict and self.loss.signal not in ("full", "top_k"):
            raise ValueError(
                f"eval.conflict compares whole distributions, and loss.signal is {self.loss.signal}; set full or top_k"
            )
        if not self.teacher.models and not self.teacher.gate:
            return
        several = "teacher.models" if self.teacher.models else "teacher.gate"
        loss, mend = self.loss, "leave one of them out"
        if loss.reads_teacher and loss.signal not in ("full", "top_k", "sampled"):
            raise ValueError(
                f"{several} with loss.signal={loss.signal}: teachers are routed and mixed by what they think of the "
                "student's tokens; set loss.signal=full, top_k or sampled"
            )
        for key, given in {
            "loss.unsure": loss.unsure is not None,
            "loss.sampled.baseline": loss.sampled.baseline,
            f"rollout.{self.rollout.begun_by_teacher}": self.rollout.begun_by_teacher is not None,
            "rollout.offline": self.rollout.offline is not None,
        }.items():
            if given:
                raise ValueError(f"{several} with {key}: it needs one teacher for all prompts; {mend}")

    def _fits_cross(self) -> None:
        """A teacher with another tokenizer is another model, reads plain text and cannot write for the student."""
        teacher, rollout = self.teacher, self.rollout
        if teacher.weights != "model":
            raise ValueError(
                f"loss.signal=cross needs a teacher with another tokenizer, and teacher.weights={teacher.weights} is "
                "the student itself; set teacher.weights=model and teacher.model, or loss.signal=full"
            )
        if teacher.view.kind != "plain":
            raise ValueError(
                f"teacher.view={teacher.view.kind} with loss.signal=cross: a teacher with another tokenizer reads the "
                "plain conversation alone; set teacher.view=plain"
            )
        if "teacher" in rollout.writers:
            key = "policy" if rollout.policy == "teacher" else "other"
            raise ValueError(
                f"rollout.{key}=teacher with loss.signal=cross: the teacher's tokens are not the student's; set "
                "rollout.policy=student and rollout.off_policy=0, or rollout.other=answers"
            )
        if rollout.begun_by_teacher:
            raise ValueError(
                f"rollout.{rollout.begun_by_teacher} with loss.signal=cross: the teacher's tokens are not the "
                "student's; leave one out"
            )
        if self.eval.divergence:
            raise ValueError(
                "eval.divergence with loss.signal=cross: there is no reverse KL between two vocabularies; leave "
                "eval.divergence out and give eval.prompts with answers, or eval.text"
            )

    def _fits_curriculum(self) -> None:
        """A prompt's divergence is the mean of its tokens' losses, where these measure one."""
        loss, curriculum = self.loss, self.rollout.curriculum
        if curriculum is None or not curriculum.divergence:
            return
        what = "rollout.curriculum.divergence goes by each token's distance to the teacher"
        if not loss.reads_teacher:
            raise ValueError(f"{what}, and loss.signal={loss.signal} has none; set rollout.curriculum.success instead")
        if loss.signal == "cross":
            raise ValueError(
                f"{what}, and loss.signal=cross compares whole groups of tokens; set rollout.curriculum.success instead"
            )
        for key, given in (("baseline", loss.sampled.baseline), ("discount", loss.sampled.discount)):
            if given and loss.signal == "sampled":
                raise ValueError(f"{what}, and loss.sampled.{key} makes its loss another figure; leave one of them out")

    def _fits_sampling(self) -> None:
        """Log-ratios and outcome advantages are about the student's own draws."""
        rollout, loss = self.rollout, self.loss
        what = "loss.outcome" if loss.outcome else f"loss.signal={loss.signal}"
        outcome = loss.outcome > 0 or loss.signal == "reward"
        if not (outcome or loss.signal == "sampled"):
            return
        if rollout.writers != {"student"}:
            raise ValueError(
                f"{what} weighs the student's own draws, and rollout.policy and rollout.off_policy let "
                f"{' and '.join(sorted(rollout.writers - {'student'}))} write; set rollout.policy=student, "
                "rollout.off_policy=0 and rollout.off_policy_steps=0, or loss.signal=full, top_k or tokens"
            )
        if rollout.top_p < 1 or rollout.top_k or rollout.temperature != loss.temperature:
            raise ValueError(
                f"{what} compares with the distribution that tokens were drawn from; set rollout.top_p=1, "
                "rollout.top_k=0 and rollout.temperature to loss.temperature"
            )
        if outcome and rollout.samples < 2:
            raise ValueError(f"{what} compares rollouts of one prompt; set rollout.samples to 2 or more")
        if (loss.sampled.overlong or 0) > rollout.max_new_tokens:
            raise ValueError(
                f"loss.sampled.overlong={loss.sampled.overlong} are the last of rollout.max_new_tokens="
                f"{rollout.max_new_tokens} tokens; lower it"
            )
