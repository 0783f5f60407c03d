"""The run file: every key, its default and what it means. Nothing here imports torch; ``opd.run_file`` reads it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class PromptsConfig(_Strict):
    """Where prompts come from: exactly one of ``task``, ``path`` and ``dataset``.

    A bare string is a path if it ends in .jsonl or .json, otherwise a dataset id.
    """

    task: str | None = None
    """A task with its own environment and checker: ``tools``, ``math`` or ``package.module:attribute``."""
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

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return cls.source(value) if isinstance(value, str) else value

    @staticmethod
    def source(name: str) -> dict[str, str]:
        """The key that a bare string stands for."""
        return {"path": name} if name.endswith((".jsonl", ".json")) else {"dataset": name}

    @model_validator(mode="after")
    def _one_source(self) -> PromptsConfig:
        given = [k for k in ("task", "path", "dataset") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of task, path and dataset, and has {' and '.join(given) or 'none'}")
        return self


class AuthorConfig(_Strict):
    """Who writes hints: ``rules`` (from environment events), a local model, or a chat endpoint."""

    templates: dict[str, str] | None = None
    """For rules: a template per kind of event, with fields of the event in braces."""
    model: str | None = None
    """A local model's path or id; with ``http`` the served model's name."""
    http: str | None = None
    """Base URL of an OpenAI-compatible endpoint, up to and including /v1."""
    instruction: str | None = None
    """Replaces the system message that a model gets."""
    max_new_tokens: int = Field(256, ge=1)
    """The longest answer of a model."""
    api_key_env: str = "OPD_HINT_API_KEY"
    """Environment variable with the endpoint's token; never written anywhere."""
    timeout: float = Field(60.0, gt=0)
    """Seconds per request."""
    retries: int = Field(4, ge=0)
    """Further attempts after a connection error, a timeout, status 429 or 5xx."""
    concurrency: int = Field(8, ge=1)
    """Requests at a time."""
    cache: str | None = None
    """Folder that keeps answers across runs; by default answers are kept for the run only."""

    @property
    def kind(self) -> Literal["rules", "model", "http"]:
        return "http" if self.http else "model" if self.model else "rules"

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if value == "rules":
            return {}
        if isinstance(value, str):
            raise ValueError("is 'rules', {model: PATH} or {http: URL, model: NAME}")
        return value

    @model_validator(mode="after")
    def _whole(self) -> AuthorConfig:
        if self.http and not self.model:
            raise ValueError("http needs the served model's name: {http: URL, model: NAME}")
        if self.templates and (self.model or self.http):
            raise ValueError("templates belong to the rules author; a model writes its own text")
        return self


class HintConfig(_Strict):
    """A hint inserted above the mistake; the faulty span alone gets a signal (HINT-SD, arXiv 2605.17873)."""

    author: AuthorConfig = AuthorConfig()
    place: Literal["turn", "start"] = "turn"
    """Right above the faulty turn, or at the start of the rollout."""
    role: str = "user"
    """The chat role the hint speaks in."""
    max_hints: int | None = Field(None, ge=1)
    """The most hints per rollout, the earliest first."""


class PrivilegedConfig(_Strict):
    """The reference answer in the prompt (OPSD, arXiv 2601.18734)."""

    template: str | None = None
    """The teacher's prompt, with {prompt} and {answer}."""


class ExperienceConfig(_Strict):
    """A context gathered before the first step: what an author says about the student's own mistakes (OPCD)."""

    author: AuthorConfig = AuthorConfig()
    """Who reads the rollouts. The rules' templates may leave a field of the prompt open, as ``{{listing}}``."""
    prompts: int = Field(256, ge=1)
    """Training prompts that the student rolls out for it."""
    items: int = Field(8, ge=1)
    """The most items that are kept, most frequent first."""


class ContextConfig(_Strict):
    """A text in the teacher's prompt that the student is to know by heart (OPCD, arXiv 2602.12275)."""

    text: str | None = None
    """The context; ``{name}`` is filled from the prompt's own entries where it has such a one."""
    file: str | None = None
    """A file that holds it."""
    experience: ExperienceConfig | None = None
    """Gather it from the student's own rollouts."""
    template: str | None = None
    """The teacher's prompt, with {context} and {prompt}."""
    role: str | None = None
    """Say it in a message of its own above the first turn, in this chat role."""

    @model_validator(mode="after")
    def _one_source(self) -> ContextConfig:
        given = [k for k in ("text", "file", "experience") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of text, file and experience, and has {' and '.join(given) or 'none'}")
        if self.role and self.template:
            raise ValueError("either role or template: a message of its own, or a part of the prompt")
        return self


class FeedbackConfig(_Strict):
    """A successful attempt at the same prompt, or the environment's words (SDPO, arXiv 2601.20802)."""

    template: str | None = None
    """The teacher's prompt, with {prompt}, {solution} and {feedback}."""
    solution: str | None = None
    """The part about a successful attempt, with {solution}; an empty string shows none."""
    environment: str | None = None
    """The part about the environment's words, with {feedback}; an empty string shows none."""


class ViewConfig(_Strict):
    """What the teacher sees: ``plain``, ``privileged``, ``context``, ``feedback`` or ``hint``."""

    hint: HintConfig | None = None
    privileged: PrivilegedConfig | None = None
    context: ContextConfig | None = None
    feedback: FeedbackConfig | None = None

    @property
    def kind(self) -> str:
        return next((name for name in type(self).model_fields if getattr(self, name) is not None), "plain")

    @property
    def author(self) -> AuthorConfig | None:
        """Who reads rollouts for it, if anyone does."""
        if self.hint:
            return self.hint.author
        return self.context.experience.author if self.context and self.context.experience else None

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if isinstance(value, str):
            kinds = ("plain", *cls.model_fields)
            if value not in kinds:
                raise ValueError(f"is {', '.join(kinds[:-1])} or {kinds[-1]}, not '{value}'")
            return {} if value == "plain" else {value: {}}
        return value

    @model_validator(mode="after")
    def _one(self) -> ViewConfig:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"is one of them, not {' and '.join(given)}")
        return self


class TeacherConfig(_Strict):
    weights: Literal["frozen", "ema", "live", "model"] = "frozen"
    """The student's initial weights, their moving average, the student itself, or another model."""
    model: str | None = None
    """Path or id, for ``weights: model``."""
    ema_decay: float = Field(0.99, gt=0, lt=1)
    """Share of the average that stays at each step, for ``weights: ema``."""
    view: ViewConfig = ViewConfig()
    max_tokens: int = Field(16_384, ge=1)
    """Padded tokens per forward pass of the teacher; lower it to save memory."""

    @model_validator(mode="after")
    def _whole(self) -> TeacherConfig:
        if self.weights == "model" and self.model is None:
            raise ValueError("weights is 'model', so teacher.model has to name one")
        if self.weights != "model" and self.model is not None:
            raise ValueError(f"model is given, but weights is '{self.weights}'; set teacher.weights=model")
        return self


class TopKConfig(_Strict):
    """The tokens a divergence runs over, for ``signal: top_k``."""

    k: int = Field(ge=1)
    whose: Literal["teacher", "student", "union", "intersection"] = "teacher"
    """Whose k likeliest tokens."""
    rest: Literal["tail", "renormalise", "correct"] = "tail"
    """What becomes of the other tokens: one more outcome, left out of both distributions, or corrected for."""


class CrossConfig(_Strict):
    """How tokens count that a teacher with another tokenizer has too, and those it has not, for ``signal: cross``."""

    matched_weight: float | None = Field(None, ge=0)
    """Of the JSD on common tokens; by default their share of the teacher's vocabulary, as in GOLD."""
    unmatched_weight: float | None = Field(None, ge=0)
    """Of the distance between the other tokens' probabilities, sorted by size (ULD); by default 1 less that share."""
    pieces: Literal["text", "observed"] = "text"
    """Where one side has in pieces what the other has whole: compare the probability of that text alone, or, as GOLD
    does, the first piece's whole distribution times the probabilities of the pieces that followed."""


class SampledConfig(_Strict):
    """How the sampled token's log-probability becomes a gradient, for ``signal: sampled`` and ``reward``."""

    estimator: Literal["policy_gradient", "k2", "k3"] = "policy_gradient"
    """The log-ratio as an advantage, or an estimate of the divergence differentiated as it stands."""
    discount: float = Field(0.0, ge=0, le=1)
    """Of the advantages that come later in the same rollout."""
    max_advantage: float | None = Field(None, gt=0)
    """Cuts advantages off on both sides, in nats."""
    clip: tuple[float, float] | None = None
    """PPO's clip of the importance ratio, [low, high], such as [0.2, 0.28]."""
    max_ratio: float | None = Field(None, gt=0)
    """Truncates the importance ratio."""
    baseline: bool = False
    """Subtract each position's own mean log-ratio, minus the reverse KL: less variance, the same mean (vOPD)."""
    scale: float = Field(1.0, gt=0)
    """Of the reward log teacher − log initial student; above 1 the target lies beyond the teacher (G-OPD)."""
    by_deviation: bool = True
    """Divide a group's outcome advantages by their standard deviation (GRPO) or not (Dr. GRPO)."""

    @model_validator(mode="after")
    def _fits(self) -> SampledConfig:
        if self.estimator != "policy_gradient":
            ours = {"discount": 0.0, "max_advantage": None, "clip": None, "max_ratio": None, "baseline": False}
            for key, default in ours.items():
                if getattr(self, key) != default:
                    raise ValueError(
                        f"{key} shapes an advantage, and estimator={self.estimator} has none; use policy_gradient"
                    )
        return self


class PositionsConfig(_Strict):
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
    mean: Literal["token", "sequence", "turn"] = "token"
    """Over all tokens alike, or each rollout or turn as much as any other."""
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


class BridgeConfig(_Strict):
    """Frozen projections into a common space, for a teacher of another width or depth (OPRD-Bridge)."""

    rank: int = Field(8, ge=1)
    """Dimensions of that space."""
    prompts: int = Field(256, ge=1)
    """Training prompts whose rollouts they are fitted on before the first step."""


class HiddenConfig(_Strict):
    """Which hidden states the student is to resemble, for ``signal: hidden`` (OPRD, arXiv 2606.06021)."""

    layers: tuple[int, ...] | None = None
    """The student's blocks, from 1; all by default. Of a teacher of another depth, those at the same relative depth."""
    normalise: bool = False
    """Compare directions alone; the loss is then smaller by orders of magnitude."""
    bridge: BridgeConfig | None = None
    """For a teacher of another width or depth."""


class UnsureConfig(_Strict):
    """A forward KL more where the teacher is unsure, beside ``signal: sampled`` (arXiv 2603.07079)."""

    entropy: float = Field(0.8, ge=0)
    """Of the teacher, in nats, from which on it is unsure."""
    k: int = Field(16, ge=1)
    """The teacher's likeliest tokens; all others are one more outcome."""
    weight: float = Field(1.0, gt=0)


class LossConfig(_Strict):
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
        for key, off in (("scale", 1.0), ("baseline", False)):
            value = getattr(self.sampled, key)
            if value != off and self.signal != "sampled":
                raise ValueError(f"sampled.{key}={value} needs signal=sampled, and signal is {self.signal}")
        if self.sampled != SampledConfig() and self.signal not in ("sampled", "reward") and not self.outcome:
            raise ValueError(
                f"sampled shapes what one sampled token says, and signal is {self.signal}; set loss.signal=sampled, or "
                "leave loss.sampled out"
            )
        if self.hidden != HiddenConfig() and self.signal != "hidden":
            raise ValueError(f"hidden={{…}} needs signal=hidden, and signal is {self.signal}")
        if self.unsure and self.signal != "sampled":
            raise ValueError(
                f"unsure adds the teacher's distribution to signal=sampled, and signal is {self.signal}, which has it "
                "already or has no teacher; leave loss.unsure out"
            )
        if self.clip is not None and self.signal != "full":
            raise ValueError(f"clip={self.clip} cuts a sum over the vocabulary, and signal is {self.signal}; set full")
        if self.signal == "reward" and self.sampled.estimator != "policy_gradient":
            raise ValueError("signal=reward has an advantage and no divergence; set sampled.estimator=policy_gradient")
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


class RolloutConfig(_Strict):
    policy: Literal["student", "teacher", "answers"] = "student"
    """Who writes the completions: the student (on-policy), the teacher, or the prompts' reference answers."""
    off_policy: float = Field(0.0, ge=0, le=1)
    """Chance that a batch is not the student's but of ``other``; GKD's λ is 1 less this."""
    off_policy_steps: int = Field(0, ge=0)
    """The first so many steps are not the student's but of ``other``."""
    other: Literal["teacher", "answers"] = "teacher"
    """Who writes the batches of ``off_policy`` and ``off_policy_steps``."""
    offline: int | None = Field(None, ge=1)
    """Roll out so many prompts once, before the first step, let the teacher score them once, and train on that."""
    batch: int = Field(64, ge=1)
    """Prompts per step."""
    samples: int = Field(1, ge=1)
    """Rollouts per prompt."""
    max_new_tokens: int = Field(256, ge=1)
    """The most tokens after the prompt, tool results included."""
    max_turns: int = Field(8, ge=1)
    """The most assistant turns, where there is an environment."""
    prefix: int = Field(0, ge=0)
    """The teacher writes the beginning of the first turn, up to so many tokens, a new number for every batch."""
    turns_grow_every: int | None = Field(None, ge=1)
    """Start with one turn and allow another after every so many steps, up to ``max_turns`` (TCOD)."""
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    """0 keeps every token."""
    max_rows: int = Field(256, ge=1)
    """Sequences decoded at once."""

    @property
    def writers(self) -> set[str]:
        """Everyone who writes completions."""
        return {self.policy, self.other} if self.off_policy or self.off_policy_steps else {self.policy}

    @model_validator(mode="after")
    def _fits(self) -> RolloutConfig:
        if (self.off_policy or self.off_policy_steps) and self.policy != "student":
            key = "off_policy" if self.off_policy else "off_policy_steps"
            raise ValueError(f"{key} mixes the student's rollouts with others, and policy is {self.policy}")
        if self.prefix and self.policy != "student":
            raise ValueError(f"prefix lets the student go on after a teacher, and policy is {self.policy}")
        if self.offline and self.writers != {"student"}:
            raise ValueError("offline records the student's own rollouts; set policy=student, and no off_policy")
        return self


class OptimizerConfig(_Strict):
    lr: float = Field(1e-5, gt=0)
    """Peak learning rate of AdamW."""
    steps: int = Field(100, ge=1)
    """Optimizer steps."""
    warmup: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Decay to zero after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    grad_clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    micro_batch: int | None = Field(None, ge=1)
    """Rollouts per forward and backward pass; the result is that of the whole batch."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""


class EvalConfig(_Strict):
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
    text: str | None = None
    """JSONL with ``text``: report the student's loss on it, in nats per token."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Default: the rollout's."""


class GuardsConfig(_Strict):
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


class CheckpointConfig(_Strict):
    every: int = Field(20, ge=1)
    """Steps between checkpoints."""


class MethodConfig(_Strict):
    """What `opd methods` says about a recipe."""

    title: str
    summary: str
    source: str
    reported: str = ""


class RunConfig(_Strict):
    """A whole run. See docs in the README; every key can be overridden as ``key.sub=value``."""

    method: MethodConfig | None = None
    student: str
    """Path or id of a Hugging Face causal language model."""
    prompts: PromptsConfig
    teacher: TeacherConfig = TeacherConfig()
    loss: LossConfig = LossConfig()
    rollout: RolloutConfig = RolloutConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    eval: EvalConfig = EvalConfig()
    guards: GuardsConfig = GuardsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    out: str
    """Folder of the run; it ends as an ordinary Hugging Face model folder."""
    seed: int = Field(0, ge=0)
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the forward passes; weights that train and all reductions stay float32."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; by default one for models below 20 M parameters, where more are slower."""
    log: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Loggers besides metrics.jsonl; one that is not installed is left out with a word."""

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        if self.rollout.prefix and self.teacher.weights != "model":
            raise ValueError("rollout.prefix needs teacher.weights=model and teacher.model, who writes it")
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
        if rollout.prefix:
            raise ValueError(
                "rollout.prefix with loss.signal=cross: the teacher's tokens are not the student's; leave one out"
            )
        if self.eval.divergence:
            raise ValueError(
                "eval.divergence with loss.signal=cross: there is no reverse KL between two vocabularies; leave "
                "eval.divergence out and give eval.prompts with answers, or eval.text"
            )

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
