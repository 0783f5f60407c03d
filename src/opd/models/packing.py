"""Packed forward passes: several sequences end to end in one row of tokens, with positions that start over.

Without an attention mask, transformers finds the sequences in the positions and keeps them apart. Not every
architecture does so: each model is compared with one sequence at a time before it is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from opd.models.language import LanguageModel, pad

Rows = list[list[int]]
"""Rows of one forward pass: the indices of the sequences in each row, in order."""

MULTIPLES = (1, 2, 3, 4)
"""Widths of a row that are tried, in lengths of the longest sequence: wider rows leave less padding."""

ATTENTION_COST = 6
"""Width over hidden units at which masked attention costs as much as the rest; measured on a CPU."""

SEPARATE = ("flash_attention", "flex_attention")
"""Attention that computes nothing between two sequences of a row, so that one row takes all."""

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Largest relative error of packed states by dtype; ``HALF`` for others."""
HALF = 3e-2

proven: WeakKeyDictionary[Any, dict[Any, bool]] = WeakKeyDictionary()


def packs(language_model: LanguageModel) -> bool:
    """Whether packed sequences have the states that each has alone. Computed once per model, without random numbers.

    The error has to be far below the difference that a sequence's left neighbour would make.
    """
    known = proven.setdefault(language_model.model, {})
    key = _attention(language_model), language_model.autocast
    if key not in known:
        known[key] = _probe(language_model)
    return known[key]


def _probe(language_model: LanguageModel) -> bool:
    """Read three short sequences alone, packed, and as one; the second row of the packed pass ends in padding."""
    size = language_model.model.config.get_text_config().vocab_size
    first, second, third = ([(start + 3 * i) % size for i in range(n)] for start, n in ((1, 8), (2, 4), (5, 3)))
    rows = [[first, second, third]] if _separate(language_model) else [[first], [second, third]]

    def states() -> tuple[Tensor, Tensor, Tensor]:
        alone = [_states(language_model, torch.tensor([one])) for one in (first, second, third)]
        leaked = _states(language_model, torch.tensor([[*second, *third]]))[len(second) :]
        packed = _states(language_model, *_end_to_end(rows))[: len(first) + len(second) + len(third)]
        return packed, torch.cat(alone), distance(leaked, alone[2])

    return agrees(language_model, states)


@torch.no_grad()
def agrees(language_model: LanguageModel, states: Callable[[], tuple[Tensor, Tensor, Tensor]]) -> bool:
    """Whether states that were read together are those that were read alone.

    Args:
        states: gives both, and the relative difference that another context would make, which the error has to be
            far below.
    """
    was_training = language_model.model.training
    language_model.model.eval()
    try:
        together, alone, leak = states()
    except (TypeError, ValueError, RuntimeError, IndexError, NotImplementedError, AttributeError, KeyError):
        return False  # the architecture takes no positions, or refuses these
    finally:
        language_model.model.train(was_training)
    error = distance(together, alone)
    dtype = language_model.autocast or together.dtype
    return bool((error < TOLERANCE.get(dtype, HALF)) & (error < leak / 10))


def _states(language_model: LanguageModel, ids: Tensor, positions: Tensor | None = None) -> Tensor:
    """States of all columns, row after row."""
    return language_model.layers(ids, None, (), positions)[0].flatten(0, 1)


def distance(states: Tensor, expected: Tensor) -> Tensor:
    """Norm of the difference over the norm."""
    ratio: Tensor = (states - expected).float().norm() / expected.float().norm()
    return ratio


def lay_out(
    language_model: LanguageModel, rows: Sequence[Sequence[Sequence[int]]]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The input tensors of one forward pass: packed rows, or one padded sequence per row where the model needs it.

    Returns:
        On the CPU: ids [B, L] int64, padded with 0 at the end of a row; the mask or None; the positions or None,
        [B, L] int64.
    """
    if not packs(language_model):
        return *pad([sequence for row in rows for sequence in row], left=False, device=torch.device("cpu")), None
    ids, positions = _end_to_end(rows)
    return ids, None, positions


def _end_to_end(rows: Sequence[Sequence[Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """Ids and positions of packed rows, [B, L] each; padding is read as sequences of one token."""
    width = max(sum(map(len, row)) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    if all(len(row) == 1 for row in rows):
        positions = torch.arange(width).repeat(len(rows), 1)  # no restart, so attention is causal without a mask
    else:
        positions = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        tokens = list(chain.from_iterable(row))
        ids[number, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        positions[number, : len(tokens)] = torch.cat([torch.arange(len(sequence)) for sequence in row])
    return ids, positions


def passes(language_model: LanguageModel, lengths: Sequence[int], max_tokens: int | None) -> Iterator[Rows]:
    """Divide sequences among forward passes of at most ``max_tokens`` tokens, padding included, longest first.

    A sequence that is longer has a pass for itself. The same lengths give the same passes.

    Args:
        max_tokens: None for one pass.
    """
    left = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    packed, hidden = packs(language_model), language_model.width
    while left:
        longest = lengths[left[0]]
        budget = max(max_tokens or len(left) * longest, longest)
        most = len(left) if max_tokens is None else budget // longest
        if not packed:
            rows = [[index] for index in left[:most]]
        elif _separate(language_model):
            rows = _fill(lengths, left, width=budget, most=1)
        else:
            tried = [
                _fill(lengths, left, width=n * longest, most=-(-most // n) if max_tokens is None else most // n)
                for n in MULTIPLES
                if n <= most
            ]
            rows = min(tried, key=lambda rows: _cost(lengths, rows, hidden))
        yield rows
        done = {index for row in rows for index in row}
        left = [index for index in left if index not in done]


def _fill(lengths: Sequence[int], order: Sequence[int], *, width: int, most: int) -> Rows:
    """First fit: each sequence goes into the first of at most ``most`` rows that has room, or is left out."""
    rows: Rows = []
    room: list[int] = []
    for index in order:
        length = lengths[index]
        row = next((number for number, free in enumerate(room) if free >= length), len(rows))
        if row == len(rows):
            if row == most:
                continue
            rows.append([])
            room.append(width)
        rows[row].append(index)
        room[row] -= length
    return rows


def _cost(lengths: Sequence[int], rows: Rows, hidden: int) -> float:
    """Computation per token: of all columns, and of attention within a row's width."""
    used = [sum(lengths[index] for index in row) for row in rows]
    width = max(used)
    return len(rows) * width * (1 + width / (ATTENTION_COST * hidden)) / sum(used)


def _separate(language_model: LanguageModel) -> bool:
    return _attention(language_model).startswith(SEPARATE)


def _attention(language_model: LanguageModel) -> str:
    return str(language_model.model.config.get_text_config()._attn_implementation)
