"""``prompts.reward``: functions of the user's own, and judges."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from opd.axes.authors import AuthorConfig
from opd.axes.authors.http import Http
from opd.axes.base import GIVEN, axis_value, imported
from opd.config.base import Strict, exactly_one
from opd.config.secrets import ServerUrl

TASK = "task"
"""The function that stands for the prompts' own check: their task's reward, or right and wrong answers."""


class ServedJudge(Http):
    """A judge behind an OpenAI-compatible chat endpoint, whose address is written as ``http``."""

    url: ServerUrl = Field(validation_alias=AliasChoices("http", "url"))
    """Base URL, up to and including /v1."""

    address = "http"


def _judge(given: Any) -> Any:
    if isinstance(given, AuthorConfig):
        return given
    if not isinstance(given, Mapping) or not {"model", "http"} & given.keys():
        raise ValueError("a judge is a model. Fix: write {model: PATH} or {http: URL, model: NAME}")
    settings = {"type": "http" if "http" in given else "model", **given}
    if settings.get("instruction") is not None:
        raise ValueError("a judge's instruction is the rubric. Fix: write it as rubric, beside judge")
    return axis_value(settings, AuthorConfig, http=ServedJudge)


class RewardConfig(Strict):
    """One reward of every rollout: a function, or a judge with a rubric. A bare string is a function."""

    function: str | None = None
    """``package.module:function``, called as ``function(prompt, completion, row)``; ``task``: their own check."""
    judge: Annotated[SerializeAsAny[AuthorConfig], BeforeValidator(_judge)] | None = None
    """The model that judges: ``{model: PATH}`` or ``{http: URL, model: NAME}``, with the settings of a hint author."""
    rubric: str | None = None
    """The judge's instruction: what makes an answer good."""
    verdicts: dict[str, float] | None = Field(None, min_length=2)
    """Words that the judge chooses from, with rewards, such as ``{yes: 1, no: 0}``; by default it gives a score."""
    compare: bool = False
    """Let the judge rank all answers to a prompt at once, instead of judging each alone."""
    weight: float = 1.0
    """Factor of this reward in the sum."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"function": value} if isinstance(value, str) else value

    @field_validator("verdicts", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        # YAML reads yes and no as true and false.
        words = {True: "yes", False: "no"}
        is_mapping = isinstance(value, Mapping)
        return {words[k] if isinstance(k, bool) else k: v for k, v in value.items()} if is_mapping else value

    @model_validator(mode="after")
    def _one_kind(self) -> RewardConfig:
        exactly_one(self, "function", "judge")
        if self.judge is not None and not (self.rubric or "").strip():
            raise ValueError("rubric is missing, and a judge needs one. Fix: write what makes an answer good")
        for key in ("rubric", "verdicts", "compare") if self.judge is None else ():
            if getattr(self, key):
                raise ValueError(f"{key} is a judge's, and there is none. Fix: leave it out, or give judge")
        if self.compare and self.verdicts:
            raise ValueError("verdicts judge one answer, and compare ranks several. Fix: leave one of them out")
        if self.function not in (None, TASK, GIVEN):
            check_function(imported(self.function), self.function)
        return self


def check_function(function: Any, name: str) -> None:
    """Refuse what cannot be called with a prompt, a completion and a row.

    Raises:
        ValueError: the sentence names the function.
    """
    fix = "Fix: write def reward(prompt, completion, row), which returns a number"
    if not callable(function) or isinstance(function, type):
        raise ValueError(f"'{name}' is no function. {fix}")
    try:
        inspect.signature(function).bind("", "", {})
    except (TypeError, ValueError) as error:
        raise ValueError(f"'{name}' cannot be called with a prompt, a completion and a row ({error}). {fix}") from None
