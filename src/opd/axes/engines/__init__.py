"""Engines: what generates tokens."""

from opd.axes.base import axis
from opd.axes.engines.base import EngineConfig, GivenEngine
from opd.axes.engines.hf import Hf

Engine = axis(EngineConfig, Hf, GivenEngine)

__all__ = ["Engine", "EngineConfig", "Hf"]
