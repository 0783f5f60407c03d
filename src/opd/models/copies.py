"""Copies of a student: a frozen copy, and a running average of its weights."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from opd.models.language import LanguageModel, freeze
from opd.models.weights import load_into, shared_copy, trained


def frozen_copy(language_model: LanguageModel, *, shared: bool = False) -> LanguageModel:
    """A copy of the model that no longer changes; the frozen teacher and the anchor share one.

    Weights that do not train are shared with the model: of an adapted student only the adapter is copied.

    Args:
        shared: share all weights, until each of both divides its own.
    """
    model = freeze(shared_copy(language_model.model, trained=shared))
    return dataclasses.replace(language_model, model=model)


class EmaWeights:
    """An exponential moving average of a model's weights: average <- decay * average + (1 - decay) * live.

    Args:
        average: a frozen copy, updated in place.
        live: the model that trains.
        decay: share of the average that stays at each optimizer step.
    """

    def __init__(self, average: nn.Module, live: nn.Module, decay: float) -> None:
        self.average = average
        self.live = live
        self.decay = decay

    @torch.no_grad()
    def update(self) -> None:
        """Move the average one optimizer step on."""
        for mean, current in zip(self.average.parameters(), self.live.parameters(), strict=True):
            if mean is not current:  # weights that do not train are shared
                mean.lerp_(current.to(mean.dtype), 1 - self.decay)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the live weights as they are."""
        for mean, current in zip(self.average.parameters(), self.live.parameters(), strict=True):
            mean.copy_(current)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The averages of the parameters that train, by name, for a checkpoint."""
        training = trained(self.live)
        return {name: p for name, p in self.average.named_parameters() if name in training}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what ``tensors`` returned."""
        load_into(self.tensors(), tensors)
