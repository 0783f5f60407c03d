"""``served``: servers that read a teacher's model. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from opd.config.base import Strict
from opd.config.secrets import KeyVariable, ServerUrl

TEACHER_KEY = "OPD_TEACHER_API_KEY"
"""Environment variable with the key of teachers' servers, unless another one is named."""

ROLLOUT_KEY = "OPD_ROLLOUT_API_KEY"
"""The same of rollout servers."""


class ServedConfig(Strict):
    """Servers with one teacher's weights; an address or a list of addresses stands for its ``url``.

    A server is `opd serve`, or vLLM as a pooling server. Config, tokenizer and output head come from ``model``.
    """

    url: tuple[ServerUrl, ...] = Field(min_length=1)
    """Addresses of servers with the same weights, such as http://HOST:8000. Each request goes to one of them."""
    name: str | None = None
    """The served model's name; by default the only one that the server has."""
    states: Literal["bfloat16", "float32"] = "bfloat16"
    """What a hidden state is sent as: 2 or 4 bytes for each of its units."""
    sequences: int = Field(8, ge=1, le=64)
    """Rollouts of one request."""
    concurrency: int = Field(8, ge=1)
    """Requests at a time."""
    timeout: float = Field(60.0, gt=0)
    """Seconds for a whole request."""
    wait: float = Field(600.0, ge=0)
    """Seconds to go on asking a server that does not answer or answers wrongly, before the run ends."""
    api_key_env: KeyVariable = TEACHER_KEY
    """Environment variable with the servers' key, which is never written anywhere."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping | ServedConfig) else {"url": value}

    @field_validator("url", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value
