"""Generation with transformers, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from opd.axes.context import RunContext
from opd.axes.engines.base import EngineConfig

if TYPE_CHECKING:
    from opd.models.language import LanguageModel
    from opd.types import Engine


class Hf(EngineConfig):
    """Any Hugging Face causal language model, as it is at the call."""

    type: Literal["hf"] = "hf"
    max_rows: int = Field(256, ge=1)
    """Sequences decoded at once. Another number draws other tokens from the same seed, so a run repeats with the same
    one only."""

    def build(self, run: RunContext, model: LanguageModel) -> Engine:
        """The engine."""
        from opd.engines.hf import HFEngine

        return HFEngine(model, max_rows=self.max_rows, stream=run.world.rank)
