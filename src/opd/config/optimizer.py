"""The optimizer's keys of a run file."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Field, field_validator

from opd.config.base import Strict

Share = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Strict):
    lr: float = Field(1e-5, gt=0, le=1e9)
    """Peak learning rate of AdamW."""
    steps: int = Field(100, ge=1)
    """Optimizer steps."""
    warmup: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or decayed to zero at the last step."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay of AdamW's two moments."""
    weight_decay: float = Field(0.0, ge=0)
    """Of AdamW, decoupled from the gradient."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    state: Literal["float32", "bfloat16", "8bit"] = "float32"
    """Dtype of AdamW's two moments: 8, 4 or about 2 bytes for each weight that trains. ``bfloat16`` rounds up or down
    by chance; ``8bit`` needs bitsandbytes (``opd[quantize]``)."""
    micro_batch: int | None = Field(None, ge=1)
    """Rollouts per forward and backward pass; the gradient is that of the whole batch."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""

    @field_validator("state")
    @classmethod
    def _installed(cls, given: str) -> str:
        if given == "8bit" and find_spec("bitsandbytes") is None:
            raise ValueError(
                "8bit needs the package bitsandbytes. Fix: pip install 'opd[quantize]', or set optimizer.state=bfloat16"
            )
        return given


class ReplicateConfig(Strict):
    replicate: int = Field(ge=1)
    """Groups of processes that each have all weights, for instance one a machine."""


class LanguageOptimizerConfig(OptimizerConfig):
    micro_tokens: int | None = Field(None, ge=1)
    """Most tokens per forward and backward pass, padding included; the gradient is that of the whole batch. A longer
    rollout has a pass for itself."""
    shard: bool | Literal["auto"] | ReplicateConfig = "auto"
    """Whether several processes divide weights, gradients and moments among them; ``{replicate: n}`` in n groups.
    ``auto`` does, except with ``lora``, ``compile``, ``experimental.extrapolate`` and ``experimental.conflict``."""
