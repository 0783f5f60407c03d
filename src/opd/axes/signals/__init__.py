"""Signals: what the teacher gives for every token of a rollout."""

from typing import Annotated

from pydantic import SerializeAsAny

from opd.axes.base import axis
from opd.axes.signals.base import GivenSignal, SignalConfig
from opd.axes.signals.full import Full
from opd.axes.signals.hidden import Hidden
from opd.axes.signals.other_tokenizer import OtherTokenizer
from opd.axes.signals.reward import Reward
from opd.axes.signals.sampled import Sampled
from opd.axes.signals.sft import Sft
from opd.axes.signals.top_k import TopK

SignalChoice = Annotated[
    SerializeAsAny[SignalConfig],
    axis(SignalConfig, Full, TopK, Sampled, Hidden, OtherTokenizer, Reward, Sft, GivenSignal),
]

__all__ = ["Full", "SignalChoice", "SignalConfig"]
