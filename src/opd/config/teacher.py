"""``teacher``: who scores the rollouts, and what it gets to see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from opd.config.base import Strict


class AuthorConfig(Strict):
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


class HintConfig(Strict):
    """A hint inserted above the mistake; the faulty span alone gets a signal (HINT-SD, arXiv 2605.17873)."""

    author: AuthorConfig = AuthorConfig()
    place: Literal["turn", "start"] = "turn"
    """Right above the faulty turn, or at the start of the rollout."""
    role: str = "user"
    """The chat role the hint speaks in."""
    max_hints: int | None = Field(None, ge=1)
    """The most hints per rollout, the earliest first."""


class PrivilegedConfig(Strict):
    """The reference answer in the prompt (OPSD, arXiv 2601.18734)."""

    template: str | None = None
    """The teacher's prompt, with {prompt} and {answer}."""


class ExperienceConfig(Strict):
    """A context gathered before the first step: what an author says about the student's own mistakes (OPCD)."""

    author: AuthorConfig = AuthorConfig()
    """Who reads the rollouts. The rules' templates may leave a field of the prompt open, as ``{{listing}}``."""
    prompts: int = Field(256, ge=1)
    """Training prompts that the student rolls out for it."""
    items: int = Field(8, ge=1)
    """The most items that are kept, most frequent first."""
    consolidate: bool = False
    """Let a model that is the author rewrite all items into so many; otherwise equal ones count as one."""

    @model_validator(mode="after")
    def _can_write(self) -> ExperienceConfig:
        if self.consolidate and self.author.kind == "rules":
            raise ValueError(
                "consolidate needs an author that can write; give author={model: …} or {http: …, model: …}"
            )
        return self


class ContextConfig(Strict):
    """A text in the teacher's prompt that the student is to know by heart (OPCD, arXiv 2602.12275)."""

    text: str | None = Field(None, min_length=1)
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


class FeedbackConfig(Strict):
    """A successful attempt at the same prompt, or the environment's words (SDPO, arXiv 2601.20802)."""

    template: str | None = None
    """The teacher's prompt, with {prompt}, {solution} and {feedback}."""
    solution: str | None = None
    """The part about a successful attempt, with {solution}; an empty string shows none."""
    environment: str | None = None
    """The part about the environment's words, with {feedback}; an empty string shows none."""

    @model_validator(mode="after")
    def _something(self) -> FeedbackConfig:
        if self.solution == "" and self.environment == "":
            raise ValueError("solution and environment are both empty, so the teacher would see nothing; give one")
        return self


class ViewConfig(Strict):
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


class ExpertConfig(Strict):
    """One of several teachers; a bare string is its model."""

    model: str
    """Path or id."""
    domains: tuple[str, ...] | None = Field(None, min_length=1)
    """Of the prompts that it reads; by default the one that it is named after."""
    weight: float = Field(1.0, gt=0)
    """Beside others that read the same prompts."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class GateConfig(Strict):
    """Who may teach what, by the figures of every evaluation: better than the student there, and not too far from it.

    A teacher that is refused is asked no more; it may come back when it is better by more than ``margin``.
    """

    margin: float = Field(0.0, ge=0)
    """Its accuracy has to be above the student's by more than this at the start. Later on it is refused once the
    student is ahead by more than chance explains (two standard errors)."""
    overlap: float = Field(0.05, ge=0, le=1)
    """The least share of the 16 likeliest tokens that it has in common with the student; below, it is too far."""
    by_quality: bool = False
    """Where several read the same prompts, let their shares be how far each is ahead of the student."""


class TeacherConfig(Strict):
    weights: Literal["frozen", "ema", "live", "model"] = "frozen"
    """The student's initial weights, their moving average, the student itself, or another model."""
    model: str | None = None
    """Path or id, for ``weights: model``."""
    models: dict[str, ExpertConfig] | None = Field(None, min_length=1)
    """Several, by name, instead of ``model``: each reads the prompts of its own domains."""
    combine: Literal["losses", "arithmetic", "geometric", "alternate"] = "losses"
    """Where several read the same prompt: the mean of their losses, one loss to the arithmetic or geometric mean of
    their distributions, or a draw of one of them for each rollout."""
    gate: GateConfig | None = None
    """Measure teachers against the student, and refuse those that would make it worse."""
    ema_decay: float = Field(0.99, gt=0, lt=1)
    """Share of the average that stays at each step, for ``weights: ema``."""
    view: ViewConfig = ViewConfig()
    """What it reads beside the student's tokens."""
    max_tokens: int = Field(16_384, ge=1)
    """Padded tokens per forward pass of the teacher; lower it to save memory."""

    @model_validator(mode="after")
    def _whole(self) -> TeacherConfig:
        if self.models and self.model:
            raise ValueError("model and models: name one teacher or several; leave one of them out")
        if self.weights != "model" and self.models:
            raise ValueError(f"models are given, but weights is '{self.weights}'; set teacher.weights=model")
        if self.weights == "model" and self.model is None and self.models is None:
            raise ValueError("weights is 'model', so teacher.model has to name one, or teacher.models several")
        if self.gate and self.weights != "model":
            raise ValueError(
                f"gate measures a teacher that is a model of its own, and weights is '{self.weights}'; leave one out"
            )
        if self.combine != "losses" and not self.models:
            raise ValueError(f"combine={self.combine} is about several teachers; give teacher.models")
        if self.weights != "model" and self.model is not None:
            raise ValueError(f"model is given, but weights is '{self.weights}'; set teacher.weights=model")
        return self

    @property
    def shares(self) -> dict[str, dict[str, float]]:
        """By domain and name, how much each of several teachers has to say."""
        return shares_of(self.models)


def shares_of(models: Mapping[str, ExpertConfig] | None) -> dict[str, dict[str, float]]:
    """By domain and name, how much each of several teachers has to say."""
    shares: dict[str, dict[str, float]] = {}
    for name, expert in (models or {}).items():
        for domain in expert.domains or (name,):
            shares.setdefault(domain, {})[name] = expert.weight
    return shares
