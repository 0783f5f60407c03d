"""The weights that generate tokens: the live ones, or a copy in the dtype that they run in."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from opd.models.adapters import adapted
from opd.models.language import LanguageModel


class RunningWeights:
    """Autocast casts every weight at every token. A copy that is cast once after each update saves that.

    A model that is an adapter, or whose weights have autocast's dtype, has none.

    Args:
        language_model: the live model.
        copied: make the copy.
    """

    def __init__(self, language_model: LanguageModel, *, copied: bool) -> None:
        self.own: dict[str, Tensor] = {}
        """The cast weights by the live ones' names: of a model that is divided, the live tensors change."""
        self.live = language_model.model
        self.running = language_model
        dtype = language_model.autocast
        if copied and dtype is not None and not adapted(language_model.model):
            self.running = self._copy(language_model, dtype)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the live weights as they are."""
        live = dict(self.live.named_parameters()) if self.own else {}
        for name, own in self.own.items():
            own.copy_(live[name])

    @torch.no_grad()
    def _copy(self, language_model: LanguageModel, dtype: torch.dtype) -> LanguageModel:
        """The model around cast parameters. Buffers are the same ones: rotary frequencies stay float32."""
        model = language_model.model
        memo: dict[int, Any] = {id(b): b for b in model.buffers()}
        for name, live in model.named_parameters():
            if live.is_floating_point() and live.dtype != dtype:
                own = nn.Parameter(live.to(dtype), requires_grad=False)
                self.own[name] = own
                memo[id(live)] = own
            else:
                memo[id(live)] = live
        if not self.own:
            return language_model
        return dataclasses.replace(language_model, model=copy.deepcopy(model, memo).eval(), autocast=None)
