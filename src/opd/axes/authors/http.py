"""Hints by a served model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from opd.axes.authors.base import AuthorConfig
from opd.axes.context import RunContext
from opd.config.secrets import KeyVariable, RequestFields, ServerUrl

if TYPE_CHECKING:
    from opd.types import HintAuthor


class Http(AuthorConfig):
    """A model behind an OpenAI-compatible chat endpoint."""

    type: Literal["http"] = "http"
    url: ServerUrl
    """Base URL, up to and including /v1."""
    model: str
    """The served model's name."""
    instruction: str | None = None
    """Replaces the model's system message."""
    see_answer: bool = False
    """Show it the prompt's reference answer."""
    max_new_tokens: int | None = Field(256, ge=1)
    """Longest answer, sent as ``max_tokens``; ``null`` leaves the field out."""
    temperature: float | None = Field(0.0, ge=0)
    """Sampling temperature of the answer; ``null`` leaves the field out, as some reasoning models demand."""
    extra: RequestFields = Field(default_factory=dict)
    """Further fields of every request, such as ``{max_completion_tokens: 4096, reasoning_effort: low}``."""
    api_key_env: KeyVariable = "OPD_HINT_API_KEY"
    """Environment variable with the server's key, which is never written anywhere."""
    timeout: float = Field(60.0, gt=0)
    """Seconds for a whole request."""
    retries: int = Field(4, ge=0)
    """Further attempts after a connection error, a timeout, status 429 or 5xx."""
    concurrency: int = Field(8, ge=1)
    """Requests at a time."""
    cache: str | None = None
    """Folder that keeps answers across runs; by default answers are kept for the run only."""

    address: ClassVar[str] = "url"
    """The name of the address in the run file, for error messages."""
    writes = True
    sends_requests = True

    @field_validator("extra")
    @classmethod
    def _without_own_fields(cls, extra: dict[str, Any]) -> dict[str, Any]:
        keys = {
            "model": "model",
            "messages": "instruction",
            "max_tokens": "max_new_tokens",
            "temperature": "temperature",
        }
        for name in sorted(keys.keys() & extra.keys()):
            raise ValueError(f"'{name}' is set by the author itself. Fix: use its key {keys[name]}")
        if extra.get("stream") or extra.get("n", 1) != 1:
            raise ValueError("one whole answer is read. Fix: leave stream and n out")
        return extra

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Answers, if they are shown."""
        return {"see_answer": ("answers",)} if self.see_answer else {}

    def build(self, run: RunContext, key: str) -> HintAuthor:
        """The author; nothing is sent yet."""
        from opd.teachers.hint_http import HttpAuthor

        settings = self.model_dump(exclude={"type", "url", "model", "instruction"})
        if self.instruction:
            settings["instruction"] = self.instruction
        return HttpAuthor(self.url, self.model, **settings, key=f"{key}.{self.address}")
