"""The run file as a whole: prompts, optimizer, evaluation and guards."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from opd.axes import needs
from opd.config.adapter import LoraConfig
from opd.config.base import Strict, exactly_one
from opd.config.loss import LossConfig
from opd.config.optimizer import LanguageOptimizerConfig, OptimizerConfig
from opd.config.reward import RewardConfig
from opd.config.rollout import RolloutConfig, SamplingConfig
from opd.config.tasks import IMAGE_TASKS, TASKS
from opd.config.teacher import TeacherConfig
from opd.config.tools import ToolsConfig
from opd.errors import near
from opd.experimental.config import ExperimentalConfig

TEMPLATE_OWN = frozenset(
    {
        "conversation",
        "messages",
        "tools",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
    }
    | {"padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"}
    | {"tokenizer_kwargs"}
)
"""Arguments of ``apply_chat_template`` that are no arguments of the template, or that opd sets."""

COLUMNS = ("prompt", "messages", "answer", "turns", "domain", "id", "tools", "chat_template_kwargs")
"""Columns of prompts that opd reads; any other is kept for tasks, rewards and templates."""

FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Endings of files with prompts; all but Parquet also with ``.gz``."""

SOURCES = ("task", "path", "dataset", "mix")
"""Where prompts come from."""

NOT_WITH = {"task": {"columns", "subset", "tools"}, "path": {"subset", "split"}, "dataset": set[str]()}
"""Settings that do not apply to a source; a mix takes those of ``BESIDE_MIX`` alone."""

BESIDE_MIX = frozenset({"mix", "chat_template_kwargs", "max_tokens", "reward"})
"""Keys that stand beside ``mix`` and hold for all of its sources."""


class PromptsConfig(Strict):
    """Where prompts come from: exactly one of ``task``, ``path``, ``dataset`` and ``mix``.

    A bare string is a path if it ends as a file does (``.jsonl``, ``.json``, ``.csv``, ``.tsv``, ``.parquet``),
    otherwise a dataset; a list is a mix.
    """

    task: str | None = None
    """A task with its own environment and checker: ``tools``, ``math``, ``strings``, ``search`` or
    ``package.module:attribute``."""
    path: str | None = None
    """A JSONL, JSON, CSV or Parquet file with the columns ``prompt`` or ``messages``, and optionally ``answer``,
    ``domain``, ``id``, ``tools``, ``turns`` and ``chat_template_kwargs``."""
    dataset: str | None = None
    """A Hugging Face dataset id or folder with the same columns."""
    subset: str | None = None
    """The dataset's configuration name."""
    split: str | None = None
    """Split of the task or dataset; by default ``train``, and for held-out prompts ``test`` or ``validation`` where
    there is one. A file has no splits."""
    columns: dict[str, str] = Field(default_factory=dict)
    """The source's name for a column, as in ``{prompt: question}``; ``a.b`` is the entry b of the column a."""
    limit: int | None = Field(None, ge=1)
    """Use the first n prompts; by default all."""
    max_tokens: int | None = Field(None, ge=1)
    """Leave out prompts of more tokens, as the student reads them, and report how many; by default a prompt that is too
    long for the model ends the run before it starts."""
    chat: bool | None = None
    """Wrap a ``prompt`` string as a user message; by default if the tokenizer has a chat template."""
    domain: str | None = None
    """Domain of these prompts, which selects their teachers; by default each prompt's own."""
    tools: ToolsConfig | None = None
    """Let the student call functions: ``package.module:NAME`` of a list of Python functions."""
    mix: tuple[PromptsConfig, ...] | None = Field(None, min_length=1)
    """Several sources, one prompt of each in turn; each keeps its own environment and checker."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the chat template, such as ``{enable_thinking: false}``; a row's column of this name overrides them.
    Held-out prompts take those of ``prompts``, overridden by those of ``eval.prompts``."""
    reward: tuple[RewardConfig, ...] | None = Field(None)
    """Rewards of the rollouts instead of 1 for a right answer and 0 for a wrong one: a function, a judge, or a list of
    these, whose weighted sum counts. Held-out prompts take those of ``prompts``; an empty list is none."""

    @field_validator("reward", mode="before")
    @classmethod
    def _list(cls, given: Any) -> Any:
        return given if given is None or isinstance(given, list | tuple) else [given]

    @field_validator("task")
    @classmethod
    def _task_exists(cls, given: str | None) -> str | None:
        known = TASKS | IMAGE_TASKS
        if given is None or given in known or ":" in given:
            return given
        raise ValueError(
            f"there is no task '{given}'{near(given, known)} Fix: give {', '.join(sorted(known))} or "
            "package.module:Name"
        )

    @field_validator("columns")
    @classmethod
    def _known(cls, given: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(given.keys() - set(COLUMNS)):
            raise ValueError(f"there is no column '{unknown[0]}'. Fix: name one of {', '.join(COLUMNS)}")
        return given

    @field_validator("chat_template_kwargs")
    @classmethod
    def _free(cls, given: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(given.keys() & TEMPLATE_OWN):
            raise ValueError(f"{taken[0]} is set by opd. Fix: leave it out")
        return given

    def needs(self) -> dict[str, tuple[str, ...]]:
        """A template renders text, tokens are counted of text, and rewards and tools read it."""
        used = {key: bool(getattr(self, key)) for key in ("chat_template_kwargs", "max_tokens", "tools")}
        return {key: ("text",) for key, holds in {**used, "reward": self.reward is not None}.items() if holds}

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return {"mix": value}
        return cls.source(value) if isinstance(value, str) else value

    @staticmethod
    def source(name: str) -> dict[str, str]:
        """The key that a bare string stands for."""
        return {"path": name} if name.lower().removesuffix(".gz").endswith(FILES) else {"dataset": name}

    @model_validator(mode="after")
    def _one_source(self) -> PromptsConfig:
        exactly_one(self, *SOURCES)
        source = next(name for name in SOURCES if getattr(self, name) is not None)
        given = self.model_dump(exclude_defaults=True)
        unfit = NOT_WITH.get(source, type(self).model_fields.keys() - BESIDE_MIX)
        if source == "path" and self.split == "train":  # a file is all training prompts
            unfit = unfit - {"split"}
        if found := sorted(given.keys() & unfit):
            fix = "move it into each source of the mix" if source == "mix" else "leave it out"
            words = {"path": "a file"}.get(source, f"a {source}")
            raise ValueError(f"{found[0]} does not apply to {words} (got {given[found[0]]!r}). Fix: {fix}")
        if any(source.max_tokens for source in self.mix or ()):
            raise ValueError("max_tokens holds for all sources of a mix. Fix: move it beside mix")
        return self


class EvalConfig(Strict):
    prompts: PromptsConfig | None = None
    """Held-out prompts; without them nothing is measured."""
    every: int = Field(20, ge=1)
    """Steps between evaluations."""
    rollouts_per_prompt: int = Field(0, ge=0, le=100_000)
    """Also sample n answers per prompt and report their mean accuracy, avg@n."""
    sampling: SamplingConfig = SamplingConfig()
    """How the answers of avg@n are drawn; by default from the whole distribution at temperature 1."""
    divergence: bool | None = None
    """Reverse KL to the teacher on the student's own rollouts; by default if no answer can be checked."""
    diagnostics: int = Field(64, ge=0)
    """Number of held-out prompts for the student–teacher diagnostics (KL, overlap, entropy) and the teacher's own
    accuracy. 0 disables them. Skipped for HTTP hint authors, because each evaluation would send requests."""
    text: str | None = None
    """JSONL with ``text``: report the student's loss on it, in nats per token."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Most tokens after a held-out prompt; by default ``rollout.max_new_tokens``."""

    def needs(self) -> dict[str, tuple[str, ...]]:
        """A divergence compares with a teacher, token by token."""
        return {"divergence": ("teacher pass", "same tokenizer")} if self.divergence else {}


Threshold = Literal[
    "worse",
    "kl_vanished",
    "kl_exploded",
    "entropy_collapsed",
    "entropy_exploded",
    "too_long",
    "truncated",
    "repeating",
]
"""The thresholds of ``opd.training.guards.Watch``."""


class RecoverConfig(Strict):
    """Roll back and continue more carefully, instead of stopping, when rollouts look like a collapse."""

    times: int = Field(3, ge=1)
    """Most rollbacks; after that the run stops with its best weights."""
    lr: float = Field(0.3, gt=0, le=1)
    """Each rollback multiplies the learning rate by this."""
    anchor: float = Field(0.2, ge=0)
    """Least weight of ``loss.anchor`` after a rollback, doubled by each further one; 0 leaves the anchor alone. Needs a
    frozen copy of the student from the start."""
    thresholds: dict[Threshold, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Thresholds of the symptoms that replace the defaults of ``opd.training.guards.Watch``, by name."""


class GuardsConfig(Strict):
    drop: float = Field(0.5, gt=0, le=1)
    """Stop when validation has lost this share of its best accuracy, or the divergence has grown by as much."""
    below_start: float = Field(0.05, ge=0)
    """Stop when validation is this far below the start, and further than chance explains (three standard errors)."""
    patience: int = Field(2, ge=1)
    """Evaluations in a row, after the warm-up, that have to show it. One that has come back by a fifth of what was lost
    is not counted, and an accuracy that keeps ``1 - drop`` of its best counts half. A run's last one counts alone."""
    max_skipped: int = Field(10, ge=1)
    """Stop after this number of steps in a row whose loss or gradient is not finite."""
    max_idle: int = Field(5, ge=1)
    """Stop after this number of steps in a row without any signal."""
    no_gain: int | None = Field(None, ge=1)
    """Stop after this number of evaluations in a row that are not the best so far, with the best weights in ``out``; by
    default the run takes all its steps."""
    recover: RecoverConfig | None = None
    """Roll back to the last good checkpoint instead of stopping; ``{}`` takes the defaults. ``checkpoint.every``
    decides how much a rollback loses. Without it, and without held-out prompts that judge the run, the rollouts are
    watched all the same: a collapse ends the run with its last good checkpoint."""

    def needs(self) -> dict[str, tuple[str, ...]]:
        """An evaluation that can gain."""
        return {"no_gain": ("evaluation",)} if self.no_gain else {}


class ReportConfig(Strict):
    """The tokens that ``report.html`` shows; recorded at every evaluation."""

    prompts: int = Field(6, ge=1)
    """Number of held-out prompts that are rolled out and scored at every evaluation, and of training rollouts."""
    top_k: int = Field(8, ge=1)
    """Number of likeliest tokens of student and teacher kept at every position."""


class CheckpointConfig(Strict):
    every: int = Field(20, ge=1)
    """Steps between checkpoints."""
    keep: int | None = Field(2, ge=1)
    """Number of newest checkpoints kept, beside those a recovery may return to; ``null`` keeps all. Each is a model
    folder of 12 bytes per trained parameter: float32 weights and the optimizer's two moments."""


class LanguageCheckpointConfig(CheckpointConfig):
    beside: bool | Literal["auto"] = "auto"
    """Write checkpoints beside the next steps, from a copy in the machine's memory: 12 bytes per trained parameter.
    ``auto`` does on a GPU, in a run of one process."""


class SaveConfig(Strict):
    """How the trained model is written."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Dtype of the weights in ``out``; by default the one that the student came in. Training, checkpoints and an
    adapter's own folder stay float32."""


class MethodConfig(Strict):
    """What `opd methods` says about a recipe."""

    title: str
    """What distinguishes it, in a few words."""
    summary: str
    """What happens in a step, in one or two sentences."""
    source: str
    """Publication."""
    reported: str = ""
    """The publication's own result."""
    used_by: str = ""
    """Reported users, with the report."""
    own_model: dict[str, Any] = Field(default_factory=dict)
    """The recipe's settings for a student that is not bundled, by dotted key; those of its source if it gives them."""
    settings: Literal["bundled", "own model"] | None = None
    """Whose settings the run took, written when a recipe is read."""


MAY_CHANGE = frozenset({"log", "threads", "checkpoint", "method", "device", "report", "save"})
"""Keys of the run file that a resumed run may have changed; any other would make it another run."""


class BaseRun(Strict):
    """The keys of every run."""

    family: Literal["language", "diffusion"] = "language"
    """What is trained: a causal language model, or a denoising model in a diffusers pipeline."""
    method: MethodConfig | None = None
    """Description of a recipe; a run does not need it."""
    student: str
    """Path or id of what is trained."""
    prompts: PromptsConfig
    """Training prompts."""
    teacher: Strict
    loss: Strict
    rollout: Strict
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer and learning rate."""
    eval: Strict
    guards: GuardsConfig = GuardsConfig()
    """When a run stops or rolls back."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """How often a checkpoint is saved."""
    report: Strict | None
    out: str = Field(min_length=1)
    """Folder of the run; after the run it is an ordinary model folder."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the prompts' order, the rollouts and every other draw."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto uses a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the forward passes; trained weights and all reductions stay float32."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; by default one for models below 20 M parameters, where more are slower."""
    log: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Trackers besides metrics.jsonl. One that is not installed is skipped with a warning."""

    @field_validator("out")
    @classmethod
    def _home(cls, value: str) -> str:
        """The home folder for ``~``, which no shell expands behind ``out=``."""
        return os.path.expanduser(value)

    @field_validator("report", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return {False: None, True: {}}[value] if isinstance(value, bool) else value

    @property
    def images_per_step(self) -> int:
        """Images that the student draws in a step; 0 for a language model."""
        return 0


class RunConfig(BaseRun):
    """A whole run; every key can be overridden as ``key.sub=value``."""

    family: Literal["language"] = "language"
    """What is trained: a causal language model. ``diffusion`` has keys of its own."""
    student: str
    """Path or id of a Hugging Face causal language model, or of an adapter, which then trains."""
    lora: LoraConfig | None = None
    """Train low-rank adapters; by default all weights of the student. ``true`` takes the defaults."""
    prompts: PromptsConfig
    """Training prompts."""
    teacher: TeacherConfig = TeacherConfig()
    """What scores the rollouts, and what it sees."""
    loss: LossConfig = LossConfig()
    """The signal, the divergence, the weights of tokens, and further terms."""
    optimizer: LanguageOptimizerConfig = LanguageOptimizerConfig()
    """Optimizer and learning rate."""
    checkpoint: LanguageCheckpointConfig = LanguageCheckpointConfig()
    """How often and how a checkpoint is saved."""
    rollout: RolloutConfig = RolloutConfig()
    """What writes completions, how many and how long."""
    eval: EvalConfig = EvalConfig()
    """What is measured, on which prompts and how often."""
    report: ReportConfig | None = ReportConfig()
    """The page that shows the teacher's target for every token; ``false`` leaves it out."""

    save: SaveConfig = SaveConfig()
    """How the trained model is written."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] | None = None
    """How attention is computed; by default sdpa, or eager where the architecture has no other. flash_attention_2
    (package flash-attn, ``dtype: bfloat16``) and flex_attention run on a GPU, and compute nothing between packed
    rollouts."""
    compile: bool = False
    """Compile the blocks of student and teachers for scoring and updates, which takes seconds to minutes at the start.
    Rollouts are not compiled."""

    experimental: ExperimentalConfig = ExperimentalConfig()
    """Options that gained nothing in our own measurements."""

    @field_validator("lora", mode="before")
    @classmethod
    def _lora_switch(cls, value: Any) -> Any:
        return {False: None, True: {}}[value] if isinstance(value, bool) else value

    @property
    def may_anchor(self) -> bool:
        """Whether an anchor holds the student, or may do so after a rollback."""
        return self.loss.anchor > 0 or (self.guards.recover is not None and self.guards.recover.anchor > 0)

    @property
    def keeps_initial(self) -> bool:
        """Whether a frozen copy of the initial student is needed."""
        own = self.loss.signal.reads_teacher and not self.teacher.is_model and self.teacher.weights.fixed
        return own or self.may_anchor or self.loss.signal.keeps_initial()

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        needs.check(self)
        return self
