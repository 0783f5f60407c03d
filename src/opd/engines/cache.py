"""What a model remembers of the tokens before: keys and values, recurrent states, or both.

Keys and values of a row may stand behind padding, which the attention mask hides. A recurrent state has read its whole
row, padding included, so models with such states read rows of one length together; see ``HFEngine``.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from opd.errors import ModelError
from opd.models.language import LanguageModel


class _GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not followed
    """One layer's keys and values in a buffer with spare room, so a step copies one position, not the whole cache."""

    room: tuple[Tensor, Tensor] | None = None

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Replace the contents, for other rows or other padding."""
        self.keys, self.values = keys, values
        self.room = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append positions and return all of them, [rows, heads, positions, head size]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.replace(key_states, value_states)
            return self.keys, self.values
        start, stop = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        room = self.room
        if room is None or stop > room[0].shape[2]:
            spare = (0, 0, 0, max(stop // 4, key_states.shape[2] + 32))
            room = self.room = (F.pad(self.keys, spare), F.pad(self.values, spare))
        room[0][:, :, start:stop], room[1][:, :, start:stop] = key_states, value_states
        self.keys, self.values = room[0][:, :, :stop], room[1][:, :, :stop]
        return self.keys, self.values


class _GrowingHybridLayer(_GrowingLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc]
    """Keys and values that grow, and recurrent states beside them."""


_ATTENTION = (DynamicLayer, DynamicSlidingWindowLayer)
_HYBRID = (LinearAttentionAndFullAttentionLayer, LinearAttentionAndSlidingWindowAttentionLayer)


class RowCache:
    """The cache of B rows of one model, whose rows can be chosen, joined and padded.

    Args:
        language_model: its config names the kind of each layer.

    Raises:
        ModelError: a layer keeps something else than keys, values and recurrent states.
    """

    def __init__(self, language_model: LanguageModel) -> None:
        model = language_model.model
        self.argument = cache_argument(model) or ""
        layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers if self.argument else []
        self.recurrent = any(isinstance(layer, LinearAttentionLayer) for layer in layers)
        self.attends = any(isinstance(layer, DynamicLayer) for layer in layers)
        known = (*_ATTENTION, *_HYBRID, LinearAttentionLayer, DummyLayer)
        foreign = {type(layer).__name__ for layer in layers if type(layer) not in known}
        if not self.argument or foreign:
            raise ModelError(
                f"'{language_model.source}' ({type(model).__name__}) keeps {', '.join(sorted(foreign)) or 'a state'} "
                "between tokens, which the engine hf cannot carry from step to step. Fix: use another model"
            )
        if self.recurrent:
            self.cache = Cache(layers=[_grown(layer) for layer in layers])
        else:
            self.cache = Cache(layer_class_to_replicate=_GrowingLayer)

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows."""
        for layer in self._attention():
            layer.replace(layer.keys[rows], layer.values[rows])
        for states, index in self._states():
            states[index] = states[index][rows]

    def drop(self, positions: int) -> None:
        """Drop the first positions, which are padding in every row."""
        for layer in self._attention():
            layer.replace(layer.keys[:, :, positions:], layer.values[:, :, positions:])

    def pad(self, positions: int) -> None:
        """Put padding before the first position."""
        for layer in self._attention():
            layer.replace(*(F.pad(old, (0, 0, positions, 0)) for old in (layer.keys, layer.values)))

    def join(self, other: RowCache) -> None:
        """Append the rows of another cache of the same number of positions."""
        for mine, theirs in zip(self._attention(), other._attention(), strict=True):
            mine.replace(torch.cat([mine.keys, theirs.keys]), torch.cat([mine.values, theirs.values]))
        for (states, index), (others, _) in zip(self._states(), other._states(), strict=True):
            states[index] = torch.cat([states[index], others[index]])

    def _attention(self) -> list[_GrowingLayer]:
        return [layer for layer in self.cache.layers if isinstance(layer, _GrowingLayer) and layer.is_initialized]

    def _states(self) -> list[tuple[dict[int, Tensor], int]]:
        """Where each recurrent state stands."""
        linear = [layer for layer in self.cache.layers if isinstance(layer, LinearAttentionLayer)]
        kinds = [states for layer in linear for states in (layer.conv_states, layer.recurrent_states)]
        return [(states, index) for states in kinds for index, state in states.items() if state is not None]


def cache_argument(model: Any) -> str | None:
    """The name under which a model's forward pass takes a cache; None if it takes none."""
    whole = model.get_base_model() if getattr(model, "peft_type", None) else model
    parameters = inspect.signature(whole.forward).parameters
    return next(
        (n for n in ("past_key_values", "cache_params") if n in parameters and "xLSTM" not in str(parameters[n])), None
    )


def _grown(layer: Any) -> Any:
    """The layer of the same kind whose keys and values have spare room."""
    if isinstance(layer, _HYBRID):
        return _GrowingHybridLayer(number_of_states=layer.number_of_states)
    return _GrowingLayer() if isinstance(layer, _ATTENTION) else layer
