"""Generation with transformers, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from opd.axes.context import RunContext
from opd.axes.engines.base import EngineConfig

if TYPE_CHECKING:
    from opd.engines.hf import HFEngine
    from opd.models.language import LanguageModel
    from opd.types import Engine


class Hf(EngineConfig):
    """transformers, in this process: any Hugging Face causal language model, with its present weights."""

    type: Literal["hf"] = "hf"
    max_rows: int = Field(256, ge=1)
    """Sequences decoded at once. Another number draws other tokens from the same seed, so a run repeats with the same
    one only."""

    graphs: bool = True
    """On a GPU, decode with one CUDA graph a step, in buffers of a fixed size, where the model's attention allows it;
    the tokens are the same. ``false`` takes the cache that grows, which is slower and takes less memory for short
    answers."""

    def build(self, run: RunContext, model: LanguageModel) -> Engine:
        """The engine."""
        from opd.distributed import is_divided
        from opd.engines.hf import HFEngine
        from opd.models.adapters import adapted

        if model.device.type != "cuda" or is_divided(model.model):
            return HFEngine(model, max_rows=self.max_rows, stream=run.world.rank)
        sizes = {"max_rows": self.max_rows, "stream": run.world.rank}
        # A graph reads weights at fixed places; those of a divided model are elsewhere each time they are gathered.
        may = run.world.size == 1 or adapted(model.model) or model.autocast is not None
        engine, notes = engine_on_gpu(model, graphs=self.graphs and may, **sizes)
        run.notes.extend(notes)
        return engine


def engine_on_gpu(
    model: LanguageModel, *, max_rows: int, stream: int = 0, graphs: bool = True
) -> tuple[HFEngine, list[str]]:
    """The engine for a GPU, with graphs where it generates what a forward pass gives; and a sentence if it does not."""
    from opd.engines.fixed import can_be_fixed
    from opd.engines.hf import HFEngine
    from opd.errors import ModelError
    from opd.models.inspection import check_engine

    is_fixed = graphs and can_be_fixed(model)
    engine = HFEngine(model, max_rows=max_rows, stream=stream, copied=True, fixed=is_fixed)
    reason = "its cache is not keys and values alone, or its attention takes no mask"
    if engine.fixed:
        try:
            check_engine(engine, engine.weights.running, "student")
            return engine, []
        except ModelError as error:
            engine.fixed, reason = None, str(error).partition(" Fix:")[0].rstrip(".")
    said = f"rollout.engine: '{model.source}' decodes without CUDA graphs, which takes longer ({reason})"
    return engine, [said] if graphs else []
