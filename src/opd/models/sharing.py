"""Forward passes in which sequences that begin alike share their beginning, without gradients.

One of them, the trunk, is read whole, and its keys and values are kept. Of each other one, a branch, only the tokens
that differ are read after them: all branches of a trunk end to end in one row, each of which sees the trunk up to the
place where it branches off, and itself. Eight hints about one rollout so cost little more than one.

As packed passes, these are compared with one sequence at a time before a model is trusted with them.
Suffixes: B trunks, L tokens of a trunk, Q tokens of a trunk's branches, D hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from opd.models.language import LanguageModel
from opd.models.masks import own_mask, takes_own_mask
from opd.models.packing import agrees, distance

LEAST_SHARE = 0.5
"""Part of a branch that it has in common with its trunk, at least."""
LEAST_TOKENS = 256
"""Tokens that the branches of one trunk save, at least. Below, the second pass costs what it saves."""

proven: WeakKeyDictionary[Any, dict[Any, bool]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Tree:
    """A sequence and those that branch off from it, by their indices.

    Attributes:
        branches: (index, number of first tokens in common with the trunk) of each.
    """

    trunk: int
    branches: tuple[tuple[int, int], ...]


def shares(language_model: LanguageModel) -> bool:
    """Whether branches have the states that each sequence has alone. Computed once per model."""
    known = proven.setdefault(language_model.model, {})
    key = language_model.model.config.get_text_config()._attn_implementation, language_model.autocast
    if key not in known:
        known[key] = takes_own_mask(language_model) and _probe(language_model)
    return known[key]


def _probe(language_model: LanguageModel) -> bool:
    """Two trees of different sizes; the third sequence branches off early, where its neighbour would leak."""
    size = language_model.model.config.get_text_config().vocab_size
    long, short = ([(start + 3 * i) % size for i in range(n)] for start, n in ((1, 9), (2, 6)))
    sequences = [long, [*long[:6], 4 % size, 9 % size], [*long[:3], 7 % size, 5 % size, 8 % size], short]
    sequences.append([*short[:4], 3 % size, 2 % size])
    trees = [Tree(0, ((1, 6), (2, 3))), Tree(3, ((4, 4),))]

    def states() -> tuple[Tensor, Tensor, Tensor]:
        alone = [language_model.layers(_row(language_model, one), None, ())[0][0] for one in sequences]
        leaked = language_model.layers(_row(language_model, [*long, *sequences[2][3:]]), None, ())[0][0, len(long) :]
        read = read_trees(language_model, sequences, trees)
        picked = [read.place(index, column) for index, one in enumerate(sequences) for column in range(len(one))]
        return read.hidden_ND[picked], torch.cat(alone), distance(leaked, alone[2][3:])

    return agrees(language_model, states)


def _row(language_model: LanguageModel, ids: Sequence[int]) -> Tensor:
    return torch.tensor([ids], device=language_model.device)


def trees_of(sequences: Sequence[Sequence[int]], max_tokens: int) -> list[Tree]:
    """Sequences that are worth sharing; those in no tree have too little in common with any other.

    Args:
        max_tokens: most tokens of a tree.
    """
    order = sorted(range(len(sequences)), key=lambda index: tuple(sequences[index]))
    common = [_common(sequences[a], sequences[b]) for a, b in pairwise(order)]
    trees: list[Tree] = []
    for start, stop in _alike(sequences, order, common):
        left = list(range(start, stop))
        while len(left) > 1:
            trunk = max(left, key=lambda place: len(sequences[order[place]]))
            room = max_tokens - len(sequences[order[trunk]])
            branches = []
            for place in [place for place in left if place != trunk]:
                shared, length = min(common[min(place, trunk) : max(place, trunk)]), len(sequences[order[place]])
                if shared >= LEAST_SHARE * length and length - shared <= room:
                    branches.append((order[place], shared))
                    left.remove(place)
                    room -= length - shared
            left.remove(trunk)
            if sum(shared for _, shared in branches) >= LEAST_TOKENS:
                trees.append(Tree(order[trunk], tuple(branches)))
    return trees


def _alike(
    sequences: Sequence[Sequence[int]], order: Sequence[int], common: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Ranges of sorted sequences, neighbours of which have enough in common."""
    start = 0
    for place, shared in enumerate(common):
        if shared < LEAST_SHARE * min(len(sequences[order[place]]), len(sequences[order[place + 1]])):
            yield start, place + 1
            start = place + 1
    yield start, len(order)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of first tokens in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def tree_passes(sequences: Sequence[Sequence[int]], trees: Sequence[Tree], max_tokens: int) -> Iterator[list[Tree]]:
    """Divide trees among passes of at most ``max_tokens`` tokens, padding included, the longest trunk first."""
    left = sorted(trees, key=lambda tree: -len(sequences[tree.trunk]))
    while left:
        widest = 0
        for number, tree in enumerate(left):
            widest = max(widest, _new_tokens(sequences, tree))
            if number and (number + 1) * (len(sequences[left[0].trunk]) + widest) > max_tokens:
                break
        else:
            number = len(left)
        yield left[:number]
        left = left[number:]


def _new_tokens(sequences: Sequence[Sequence[int]], tree: Tree) -> int:
    return sum(len(sequences[index]) - shared for index, shared in tree.branches)


@dataclass(frozen=True)
class TreeStates:
    """What the pass over some trees gives, at N places.

    Attributes:
        ids_N: the tokens that were read.
        hidden_ND: last hidden states.
        layers: states after chosen blocks, [N, D] each.
        place: (index of a sequence, column) -> its place.
    """

    ids_N: Tensor
    hidden_ND: Tensor
    layers: list[Tensor]
    place: Callable[[int, int], int]


@torch.no_grad()
def read_trees(
    language_model: LanguageModel, sequences: Sequence[Sequence[int]], trees: Sequence[Tree], layers: Sequence[int] = ()
) -> TreeStates:
    """One forward pass over the trunks, and one over their branches."""
    device, rows = language_model.device, len(trees)
    length = max(len(sequences[tree.trunk]) for tree in trees)
    width = max(_new_tokens(sequences, tree) for tree in trees)
    ids_BL = torch.zeros(rows, length, dtype=torch.int64)
    ids_BQ, position_BQ, seen_BQ = (torch.zeros(rows, width, dtype=torch.int64) for _ in range(3))
    branch_BQ = -torch.arange(1, width + 1).repeat(rows, 1)  # padding is a branch of its own, token by token
    where: dict[int, tuple[int, int, int]] = {}
    for row, tree in enumerate(trees):
        trunk, start = sequences[tree.trunk], 0
        ids_BL[row, : len(trunk)] = torch.tensor(trunk)
        where[tree.trunk] = row, len(trunk), 0
        for number, (index, shared) in enumerate(tree.branches):
            new = sequences[index][shared:]
            part = slice(start, start + len(new))
            ids_BQ[row, part], position_BQ[row, part] = torch.tensor(new), torch.arange(shared, shared + len(new))
            seen_BQ[row, part], branch_BQ[row, part] = shared, number
            where[index] = row, shared, rows * length + row * width + start - shared
            start += len(new)
    ids_BL, ids_BQ, position_BQ, seen_BQ, branch_BQ = (
        x.to(device) for x in (ids_BL, ids_BQ, position_BQ, seen_BQ, branch_BQ)
    )
    position_BL = torch.arange(length, device=device).expand(rows, -1)
    cache = DynamicCache()
    parts = [language_model.layers(ids_BL, None, layers, position_BL, cache=cache)]
    if width:
        distance_BQK = position_BQ[:, :, None] - torch.cat([position_BL, position_BQ], 1)[:, None]
        own_BQQ = (branch_BQ[:, :, None] == branch_BQ[:, None]) & (distance_BQK[:, :, length:] >= 0)
        seen_BQK = torch.cat([position_BL[:, None] < seen_BQ[:, :, None], own_BQQ], 2)
        mask = own_mask(language_model, seen_BQK, distance_BQK)
        parts.append(language_model.layers(ids_BQ, mask, layers, position_BQ, cache=cache))

    def place(index: int, column: int) -> int:
        row, shared, start = where[index]
        return row * length + column if column < shared else start + column

    hidden = torch.cat([hidden_BLD.flatten(0, 1) for hidden_BLD, _ in parts])
    chosen = [torch.cat([states.flatten(0, 1) for states in same]) for same in zip(*(c for _, c in parts), strict=True)]
    return TreeStates(torch.cat([ids_BL.flatten(), ids_BQ.flatten()]), hidden, chosen, place)
