"""Sequences that begin alike share their beginning: the states of each sequence alone, for every architecture."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from opd.models import forward, sharing
from opd.models.forward import Reading, collect
from opd.models.language import LanguageModel
from opd.models.masks import takes_own_mask
from opd.models.sharing import Tree, shares, tree_passes, trees_of
from opd.teachers.local import LocalTeacher
from opd.types import Prompt, Rollout, Segment, Span
from support.architectures import ARCHITECTURES, make

STATES = "Qwen3-Next, Qwen3.5, Mamba, Mamba 2, Falcon-Mamba, LFM2, Jamba, Falcon-H1, Bamba, RecurrentGemma, RWKV, xLSTM"
DISTANCES = "BLOOM, MPT"
SEPARATE = {*STATES.split(", "), *DISTANCES.split(", "), "Falcon, ALiBi", "Granite 4, hybrid", "Nemotron-H", "MiniMax"}
"""Architectures that carry a state, or measure distances in the cache instead of positions."""


@pytest.fixture(autouse=True)
def share_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LEAST_TOKENS", 5)


def branching() -> list[Reading]:
    """Two rollouts with hints at different places, one reading within another, and one with nothing in common."""
    rng = random.Random(0)

    def ids(number: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 31) for _ in range(number))

    sequences: list[tuple[int, ...]] = []
    for length, places in ((40, (12, 20, 21, 33)), (28, (9, 25))):
        trunk = ids(length)
        sequences += [trunk, *((*trunk[:place], *ids(4 + place % 3)) for place in places)]
    sequences += [sequences[0][:30], ids(17)]
    return [Reading(i, one, 0, list(range(1 + i % 3, len(one)))) for i, one in enumerate(sequences)]


def alone(model: LanguageModel, rows: Sequence[Reading], chosen: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
    """States of each sequence read by itself, at the places that predict what is wanted."""
    found = [model.layers(torch.tensor([row.ids]), None, chosen) for row in rows]
    places = [[p - 1 for p in row.wanted] for row in rows]
    states = torch.cat([hidden[0, place] for (hidden, _), place in zip(found, places, strict=True)])
    layers = [
        torch.cat([block[k][0, place] for (_, block), place in zip(found, places, strict=True)])
        for k in range(len(chosen))
    ]
    return states, layers


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("max_tokens", [60, 10_000])
@torch.no_grad()
def test_states_are_those_of_each_sequence_alone(name: str, max_tokens: int) -> None:
    model, rows = make(name), branching()
    assert shares(model) == (name not in SEPARATE)
    if name in SEPARATE and max_tokens == 60:
        return
    where, states = collect(model, rows, max_tokens=max_tokens, layers=(1, 2) if name not in SEPARATE else ())
    expected, layers = alone(model, rows, (1, 2) if name not in SEPARATE else ())
    torch.testing.assert_close(states.hidden_TD, expected, rtol=1e-4, atol=2e-5)
    for k, layer in enumerate(layers):
        assert states.layers_TKD is not None
        torch.testing.assert_close(states.layers_TKD[:, k], layer, rtol=1e-4, atol=2e-5 * float(layer.abs().max()))
    assert where.token_T.tolist() == [row.ids[p] for row in rows for p in row.wanted]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["Qwen3", "Gemma 3", "Mistral, window"])
@torch.no_grad()
def test_each_kind_of_attention(name: str, attention: str) -> None:
    model = make(name)
    model.model.set_attn_implementation(attention)
    assert shares(model)
    expected, _ = alone(model, branching())
    torch.testing.assert_close(
        collect(model, branching(), max_tokens=10_000)[1].hidden_TD, expected, rtol=1e-4, atol=2e-5
    )


@torch.no_grad()
def test_a_model_in_half_precision_is_proven_within_its_rounding() -> None:
    assert shares(make("Qwen3", dtype=torch.bfloat16))
    model = make("Qwen3")
    mixed = LanguageModel(model.model, model.tokenizer, "autocast", torch.bfloat16)
    assert shares(mixed)
    states = collect(mixed, branching(), max_tokens=10_000)[1].hidden_TD.float()
    expected = alone(mixed, branching())[0].float()
    assert float((states - expected).norm() / expected.norm()) < 2e-2


def test_positions_that_change_with_the_length_are_not_shared() -> None:
    model = make("Llama")
    assert takes_own_mask(model)
    model.model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert not takes_own_mask(model)


def test_trees_save_tokens_and_fit_into_their_limit() -> None:
    rows = [row.ids for row in branching()]
    trees = trees_of(rows, 10_000)
    assert [(tree.trunk, len(tree.branches)) for tree in trees] == [(7, 2), (0, 5)]
    for tree in trees_of(rows, 60):
        trunk = rows[tree.trunk]
        assert all(rows[index][:shared] == trunk[:shared] for index, shared in tree.branches)
        assert len(trunk) + sum(len(rows[index]) - shared for index, shared in tree.branches) <= 60
    inside = [index for tree in trees for index in (tree.trunk, *(index for index, _ in tree.branches))]
    assert len(inside) == len(set(inside)) == 9
    assert trees_of([], 100) == trees_of([(1, 2, 3)], 100) == []
    assert trees == trees_of(rows, 10_000)


def test_passes_over_trees_are_bounded_by_tokens() -> None:
    sequences = [tuple(range(n)) for n in (30, 20, 25, 8, 9)]
    trees = [Tree(0, ((3, 4),)), Tree(1, ()), Tree(2, ((4, 8),))]
    assert [[tree.trunk for tree in some] for some in tree_passes(sequences, trees, 1000)] == [[0, 2, 1]]
    assert [[tree.trunk for tree in some] for some in tree_passes(sequences, trees, 70)] == [[0, 2], [1]]
    assert [[tree.trunk for tree in some] for some in tree_passes(sequences, trees, 1)] == [[0], [2], [1]]


def test_hints_about_one_rollout_read_its_history_once(student: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    ids = tuple(rng.randrange(4, 31) for _ in range(90))
    rollout = Rollout(Prompt("p", text="x"), ids[:10], ids[10:], (True,) * 80, (0.0,) * 80, (Span(0, 80),), "stop")
    segments = [
        Segment(0, ids[: 10 + start] + tuple(rng.randrange(4, 31) for _ in range(3)), Span(start, start + 6))
        for start in range(10, 74, 8)
    ]
    read: list[int] = []
    original = LanguageModel.layers

    def counted(self: LanguageModel, input_ids: Tensor, *args: object, **kwargs: object) -> object:
        read.append(input_ids.numel())
        return original(self, input_ids, *args, **kwargs)  # type: ignore[arg-type]

    assert shares(student)
    monkeypatch.setattr(LanguageModel, "layers", counted)
    teacher = LocalTeacher(student)
    shared = teacher.score([rollout], segments)
    tokens, read[:] = sum(read), []
    monkeypatch.setattr(forward, "shares", lambda model: False)
    separate = teacher.score([rollout], segments)
    assert tokens < 0.4 * sum(read)
    for name in ("rollout_T", "position_T", "token_T"):
        assert torch.equal(getattr(shared, name), getattr(separate, name))
    torch.testing.assert_close(shared.hidden_TD, separate.hidden_TD, rtol=1e-4, atol=1e-5)
