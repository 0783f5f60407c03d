"""On-policy distillation: one loop, every method a recipe.

>>> import opd
>>> result = opd.train("hint", {"optimizer.steps": 50})  # doctest: +SKIP
"""

import os
from typing import TYPE_CHECKING, Any

# Spinning OpenMP threads make small models up to a hundred times slower; this is read when torch starts.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from opd.api import evaluate, load_model, train
    from opd.data.answers import answers_match
    from opd.errors import OpdError
    from opd.output.callbacks import Callback, RunStart
    from opd.output.result import Result
    from opd.pipelines.result import PipelineResult
    from opd.pipelines.run import pipeline
    from opd.types import Event, Hint, Message, Observation, Prompt, Rollout, Segment, Span, Task

__version__ = "0.1.0"

__all__ = [
    "Callback",
    "Event",
    "Hint",
    "Message",
    "Observation",
    "OpdError",
    "PipelineResult",
    "Prompt",
    "Result",
    "Rollout",
    "RunStart",
    "Segment",
    "Span",
    "Task",
    "answers_match",
    "evaluate",
    "load_model",
    "pipeline",
    "train",
]

_HOME = {
    "Callback": "opd.output.callbacks",
    "RunStart": "opd.output.callbacks",
    "OpdError": "opd.errors",
    "PipelineResult": "opd.pipelines.result",
    "Result": "opd.output.result",
    "answers_match": "opd.data.answers",
    "evaluate": "opd.api",
    "load_model": "opd.api",
    "pipeline": "opd.pipelines.run",
    "train": "opd.api",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and ``opd --help`` needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module 'opd' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOME.get(name, "opd.types")), name)


def __dir__() -> list[str]:
    """The public names too, although they are imported on first use."""
    return sorted({*globals(), *__all__})
