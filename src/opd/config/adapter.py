"""``lora``: low-rank adapters instead of the weights themselves. The keys of both families."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from opd.config.base import Strict


class LowRank(Strict):
    """The size of an adapter (LoRA, arXiv 2106.09685)."""

    rank: int = Field(16, ge=1)
    """Rank of the added matrices."""
    alpha: int = Field(32, ge=1)
    """The added matrices are scaled by alpha / rank."""


class LoraConfig(LowRank):
    """Train low-rank adapters of a language model instead of its weights (LoRA, arXiv 2106.09685), through peft."""

    targets: Literal["all-linear"] | tuple[str, ...] = Field("all-linear", min_length=1)
    """Name endings of the linear layers that get an adapter; ``all-linear`` for all but the output head."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the added matrices, in the student's training passes alone."""
    merge: bool = False
    """Leave a whole model in ``out``, with the adapter merged in, and the adapter alone in ``out/lora``."""

    @field_validator("targets", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and value != "all-linear" else value
