"""Weights of a self-teacher."""

from typing import Annotated

from pydantic import SerializeAsAny

from opd.axes.base import axis
from opd.axes.weights.base import WeightsConfig
from opd.axes.weights.ema import Ema
from opd.axes.weights.frozen import Frozen
from opd.axes.weights.live import Live

WeightsChoice = Annotated[SerializeAsAny[WeightsConfig], axis(WeightsConfig, Frozen, Ema, Live)]

__all__ = ["Frozen", "WeightsChoice", "WeightsConfig"]
