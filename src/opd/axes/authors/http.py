"""Hints by a served model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from opd.axes.authors.base import AuthorConfig
from opd.axes.context import RunContext

if TYPE_CHECKING:
    from opd.types import HintAuthor


class Http(AuthorConfig):
    """A model behind an OpenAI-compatible chat endpoint."""

    type: Literal["http"] = "http"
    url: str
    """Base URL, up to and including /v1."""
    model: str
    """The served model's name."""
    instruction: str | None = None
    """Replaces the model's system message."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest answer."""
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

    writes = True
    sends_requests = True

    def build(self, run: RunContext, key: str) -> HintAuthor:
        """The author; nothing is sent yet."""
        from opd.teachers.hint_http import HttpAuthor

        settings = self.model_dump(exclude={"type", "url", "model", "instruction"})
        if self.instruction:
            settings["instruction"] = self.instruction
        return HttpAuthor(self.url, self.model, **settings, key=f"{key}.url")
