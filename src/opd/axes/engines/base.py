"""The base class of engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from opd.axes.base import AxisValue
from opd.axes.context import RunContext

if TYPE_CHECKING:
    from opd.models.language import LanguageModel
    from opd.types import Engine


class EngineConfig(AxisValue):
    """An engine; ``build`` makes the object that generates with one model."""

    axis = "rollout.engine"
    elsewhere: ClassVar[bool] = False
    """Whether it generates outside this process, and so while the student is updated."""

    def build(self, run: RunContext, model: LanguageModel) -> Engine:
        """What generates tokens with ``model``; called once for the student."""
        raise NotImplementedError


class GivenEngine(EngineConfig):
    """An ``Engine`` that was given to ``opd.train``; it generates for the student, transformers for other models."""

    type: Literal["given from Python"] = "given from Python"

    def build(self, run: RunContext, model: LanguageModel) -> Engine:
        """The engine as it was given, for the student."""
        from opd.engines.hf import HFEngine

        engine: Engine = run.given("engine") if model is run.student else HFEngine(model, stream=run.world.rank)
        return engine
