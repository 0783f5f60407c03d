"""Engines: what generates tokens."""

from typing import Annotated

from pydantic import SerializeAsAny

from opd.axes.base import axis
from opd.axes.engines.base import EngineConfig, GivenEngine
from opd.axes.engines.hf import Hf
from opd.axes.engines.vllm import Vllm

EngineChoice = Annotated[SerializeAsAny[EngineConfig], axis(EngineConfig, Hf, Vllm, GivenEngine)]

__all__ = ["EngineChoice", "EngineConfig", "Hf"]
