"""Rows that decode in buffers of a fixed size, so that a step is one CUDA graph.

Each row has a slot of its own: its keys and values stand at its own positions, without padding. A step draws a token
for each slot, notes it, feeds it and leaves the next logits, all in buffers that stay where they are; random numbers
are written into a buffer before it. A row joins by copying what its prompt's pass left into a free slot, and leaves by
being forgotten, so neither needs another graph. A graph covers the first slots and the first positions, in a few
sizes; rows move together when they fit into fewer slots.

On a CPU the same step runs without a graph.
Suffixes: S slots, N new tokens, M positions, B slots of a step, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from opd.engines.cache import RowCache
from opd.engines.drawing import chosen, log_probs, points
from opd.engines.rows import Draw, GrowingRows, last_logits
from opd.models.language import LanguageModel
from opd.models.masks import own_mask, takes_own_mask
from opd.types import Sampling

LEAST_SLOTS = 8
LEAST_POSITIONS = 256
"""The smallest sizes of a step. Larger ones double, up to those of the buffers, which are multiples of them."""
WARM_UP = 2
"""Steps before a graph is captured, in which libraries choose their kernels and allocate their workspaces."""


def size_for(number: int, least: int, most: int) -> int:
    """The smallest size of a step that is enough."""
    while least < number:
        least *= 2
    return min(least, most)


def rounded_up(number: int, least: int) -> int:
    """A buffer's size."""
    return -(-number // least) * least


class _Slots(CacheLayerMixin):  # type: ignore[misc]  # transformers is not followed
    """One layer's keys and values, [S, heads, M, head size]; a step writes one position in each of its slots."""

    is_compileable = True
    is_sliding = False

    def __init__(self, rows: FixedRows, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.rows = rows
        self.keys, self.values = (
            x.new_zeros(rows.slots, x.shape[1], rows.positions, x.shape[3]) for x in (keys, values)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write each slot's next position, and return the positions that the step reads."""
        number, length = self.rows.step_size
        at_B = self.rows.cached_S[:number, None, None, None]
        for buffer, new in ((self.keys, key_states), (self.values, value_states)):
            buffer[:number].scatter_(2, at_B.expand_as(new), new.to(buffer.dtype))
        return self.keys[:number, :, :length], self.values[:number, :, :length]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the buffers are there."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a step reads."""
        return self.rows.step_size[1], 0

    def get_seq_length(self) -> int:
        """0: every row has another length, and the positions are given."""
        return 0

    def get_max_length(self) -> int:
        """Number of positions."""
        return self.rows.positions

    get_max_cache_shape = get_max_length  # its name before transformers 5.20


class FixedRows:
    """Implements ``Rows``; one object serves an engine's calls one after the other, and keeps its graphs.

    Args:
        language_model: generates; its parameters stay where they are, whatever is written into them.
    """

    def __init__(self, language_model: LanguageModel) -> None:
        self.language_model = language_model
        self.slots = self.positions = self.new_tokens = 0
        self.step_size = (0, 0)
        self.layers: list[_Slots] = []
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        """By the size of the step and what is drawn; the ids that end a row stay with the graph that reads them."""
        self.index: list[int] = []
        self.at: list[int] = []
        """Each row's slot."""
        self.written_S: list[int] = []
        """Number of new tokens in each slot."""
        self.length_S: list[int] = []
        """Number of tokens in each slot, the prompt's included."""

    # What the decode loop calls

    def start(self, rows: GrowingRows, number: int, longest: int) -> FixedRows:
        """Take the first rows of a call.

        Args:
            number: most rows at one time.
            longest: most tokens of a row, its prompt included.
        """
        sizes = rounded_up(number, LEAST_SLOTS), rounded_up(longest, LEAST_POSITIONS), rows.token_BN.shape[1]
        old = self.slots, self.positions, self.new_tokens
        self.index, self.at = [], []
        if any(new > had for new, had in zip(sizes, old, strict=True)):
            self._allocate(rows, *(max(pair) for pair in zip(sizes, old, strict=True)))
        self.join(rows)
        return self

    def join(self, other: GrowingRows) -> None:
        """Copy freshly prefilled rows into free slots."""
        free = [slot for slot in range(self.slots) if slot not in self.at][: len(other.index)]
        slots = torch.tensor(free, device=self.logits_SV.device)
        self.index, self.at = self.index + other.index, self.at + free
        length_B = other.mask_BL.sum(1)
        for slot, length in zip(free, length_B.tolist(), strict=True):
            self.written_S[slot], self.length_S[slot] = 0, length
        self.cached_S[slots] = length_B
        self.count_S[slots] = 0
        self.budget_S[slots] = other.budget_B
        self.logits_SV[slots] = other.logits_BV.to(self.logits_SV.dtype)
        width = other.mask_BL.shape[1]
        # Padding stood on the left; here every row begins at 0, and what lies behind its end is never seen.
        column_BL = (torch.arange(width, device=slots.device) + (width - length_B)[:, None]) % width
        for own, theirs in zip(self.layers, _layers(other.cache), strict=True):
            for mine, left_padded in ((own.keys, theirs.keys), (own.values, theirs.values)):
                column = column_BL[:, None, :, None].expand(-1, left_padded.shape[1], -1, left_padded.shape[3])
                mine[slots, :, :width] = left_padded.gather(2, column)

    def advance(self, draw: Draw) -> list[bool]:
        """Draw one token per row and feed it; returns which rows are finished."""
        number = self._compacted()
        drawn = points(len(self.at), draw.sampling, draw.generator)
        if drawn is not None:
            self.point_S1[self._slots] = drawn
        for slot in self.at:
            self.length_S[slot] += 1
            self.written_S[slot] += 1
        longest = max(self.length_S[slot] for slot in self.at)
        self.step_size = number, size_for(longest, LEAST_POSITIONS, self.positions)
        self._run(draw)
        finished = self.finished_S[:number].tolist()
        return [finished[slot] for slot in self.at]

    def forward(self) -> None:
        """Nothing: ``advance`` has fed the tokens."""

    def written(self, row: int) -> tuple[list[int], list[float]]:
        """The row's tokens so far, and their log-probabilities."""
        slot = self.at[row]
        count = min(self.written_S[slot], self.new_tokens)
        return self.token_SN[slot, :count].tolist(), self.logprob_SN[slot, :count].tolist()

    def keep(self, rows: list[int]) -> None:
        """Forget the other rows."""
        self.index, self.at = [self.index[row] for row in rows], [self.at[row] for row in rows]

    # Buffers

    def _allocate(self, rows: GrowingRows, slots: int, positions: int, new_tokens: int) -> None:
        self.graphs.clear()
        self.slots, self.positions, self.new_tokens = slots, positions, new_tokens
        self.written_S, self.length_S = [0] * slots, [0] * slots
        self.layers.clear()  # before the new ones are allocated
        self.layers = [_Slots(self, layer.keys, layer.values) for layer in _layers(rows.cache)]
        self.cache = Cache(layers=list(self.layers))
        device, logits = rows.logits_BV.device, rows.logits_BV
        self.logits_SV = logits.new_zeros(slots, logits.shape[1])
        self.token_SN = torch.zeros(slots, new_tokens, dtype=torch.int64, device=device)
        self.logprob_SN = torch.zeros(slots, new_tokens, device=device)
        self.cached_S, self.count_S, self.budget_S = torch.zeros(3, slots, dtype=torch.int64, device=device).unbind()
        self.point_S1 = torch.zeros(slots, 1, dtype=torch.float64, device=device)
        self.finished_S = torch.zeros(slots, dtype=torch.bool, device=device)

    @property
    def _slots(self) -> Tensor:
        return torch.tensor(self.at, device=self.logits_SV.device)

    def _compacted(self) -> int:
        """Slots of the next step. Rows move to the first ones where that makes a smaller step enough."""
        least = size_for(len(self.at), LEAST_SLOTS, self.slots)
        if max(self.at) >= least:
            old, number = self._slots, len(self.at)
            layers = [buffer for layer in self.layers for buffer in (layer.keys, layer.values)]
            own = self.logits_SV, self.token_SN, self.logprob_SN, self.cached_S, self.count_S, self.budget_S
            for buffer in (*layers, *own):
                buffer[:number] = buffer[old]
            for counts in (self.written_S, self.length_S):
                counts[:number] = [counts[slot] for slot in self.at]
            self.at = list(range(number))
        return least

    # One step

    def _run(self, draw: Draw) -> None:
        if not self.logits_SV.is_cuda:
            return self._step(draw.sampling, draw.stops)
        key = self.step_size, draw.sampling, draw.stop_ids
        if key not in self.graphs:
            self.graphs[key] = self._captured(draw.sampling, draw.stops), draw.stops
        self.graphs[key][0].replay()
        return None

    def _step(self, sampling: Sampling, stops: Tensor) -> None:
        """Draw, note and feed a token in each of the first slots. No shape and no address depends on what is drawn."""
        number, length = self.step_size
        part = slice(0, number)
        log_probs_BV = log_probs(self.logits_SV[part], sampling)
        point_B1 = self.point_S1[part] if sampling.temperature else None
        token_B1 = chosen(log_probs_BV, point_B1)[:, None].clamp_max(log_probs_BV.shape[1] - 1)  # of a free slot
        column_B1 = self.count_S[part, None].clamp_max(self.new_tokens - 1)
        self.token_SN[part].scatter_(1, column_B1, token_B1)
        self.logprob_SN[part].scatter_(1, column_B1, log_probs_BV.gather(1, token_B1))
        self.count_S[part] += 1
        stopped_B = (token_B1 == stops).any(1) if len(stops) else torch.zeros_like(self.finished_S[part])
        self.finished_S[part] = stopped_B | (self.count_S[part] >= self.budget_S[part])
        position_B1 = self.cached_S[part, None]
        distance_B1M = position_B1[:, :, None] - torch.arange(length, device=position_B1.device)
        logits_BV = last_logits(
            self.language_model,
            "past_key_values",
            self.cache,
            input_ids=token_B1,
            attention_mask=own_mask(self.language_model, distance_B1M >= 0, distance_B1M),
            position_ids=position_B1,
        )
        self.logits_SV[part] = logits_BV
        # A free slot's row is never read, and may not run out of its buffer.
        self.cached_S[part] = (self.cached_S[part] + 1).clamp_max(self.positions - 1)

    def _captured(self, sampling: Sampling, stops: Tensor) -> torch.cuda.CUDAGraph:
        """The step as a graph. What it changes before it is captured is put back; keys are written again."""
        changed = self.logits_SV, self.cached_S, self.count_S
        saved = [buffer.clone() for buffer in changed]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._step(sampling, stops)
        torch.cuda.current_stream().wait_stream(side)
        for buffer, before in zip(changed, saved, strict=True):
            buffer.copy_(before)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.graphs.values()))[0].pool() if self.graphs else None
        with torch.cuda.graph(graph, pool=pool):
            self._step(sampling, stops)
        return graph


def can_be_fixed(language_model: LanguageModel) -> bool:
    """Whether the model's cache is keys and values alone, and its attention takes a mask of ours."""
    cache = RowCache(language_model)
    return cache.argument == "past_key_values" and not cache.recurrent and takes_own_mask(language_model)


def _layers(cache: RowCache) -> list[Any]:
    return [layer for layer in cache.cache.layers if getattr(layer, "is_initialized", False)]
