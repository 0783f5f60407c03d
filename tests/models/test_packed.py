"""Packed forward passes: the states and gradients of each sequence alone, for every architecture that allows it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import opd
from opd.losses import linear_cross_entropy
from opd.models import packing
from opd.models.forward import Reading, collect, read, read_all, read_own
from opd.models.language import LanguageModel, checkpoint_activations
from opd.models.packing import packs, passes
from opd.types import Prompt, Rollout, Span
from support.architectures import ARCHITECTURES, make
from support.models import make_model
from support.small_runs import PROMPTS, small_run

LENGTHS = (40, 3, 17, 9, 2, 25, 12)
STATES = "Qwen3-Next, Qwen3.5, Mamba, Mamba 2, Falcon-Mamba, LFM2, Jamba, Falcon-H1, Bamba, RecurrentGemma, RWKV, xLSTM"
MASKS = "BLOOM, Falcon, MPT, OPT, gpt-oss, MiniMax, Nemotron-H"
PADDED = {*STATES.split(", "), *MASKS.split(", "), "Falcon, ALiBi", "Granite 4, hybrid"}
"""Architectures that carry a state from left to right, or find sequences in the mask alone."""


def readings(lengths: Sequence[int] = LENGTHS, vocab: int = 31) -> list[Reading]:
    generator = torch.Generator().manual_seed(0)
    ids = [tuple(torch.randint(3, vocab, (n,), generator=generator).tolist()) for n in lengths]
    return [Reading(i, one, 0, list(range(1, len(one)))) for i, one in enumerate(ids)]


def alone(model: LanguageModel, rows: Sequence[Reading]) -> Tensor:
    """States of each sequence read by itself, without a mask and positions."""
    return torch.cat([model.layers(torch.tensor([row.ids]), None, ())[0][0, :-1] for row in rows])


@contextmanager
def padded(model: LanguageModel) -> Iterator[None]:
    """The model's sequences are padded, as if the probe had failed."""
    packs(model)
    kept = packing.proven[model.model]
    packing.proven[model.model] = dict.fromkeys(kept, False)
    yield
    packing.proven[model.model] = kept


def gradients(model: LanguageModel, max_tokens: int | None = None) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a cross-entropy over all tokens, pass by pass."""
    model.model.zero_grad(set_to_none=True)
    total = 0.0
    for scored, states in read_all(model, readings(), max_tokens=max_tokens):
        weight_T = torch.full((len(scored),), 1 / sum(n - 1 for n in LENGTHS))
        loss = linear_cross_entropy(states.hidden_TD, states.head_VD, scored.token_T, weight=weight_T)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_states_are_those_of_each_sequence_alone(name: str) -> None:
    model = make(name)
    assert packs(model) == (name not in PADDED)
    torch.testing.assert_close(read(model, readings())[1].hidden_TD, alone(model, readings()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - PADDED))
def test_gradients_are_those_of_each_sequence_alone(name: str) -> None:
    model = make(name)
    loss, packed = gradients(model)
    with padded(model):
        expected_loss, expected = gradients(model, max_tokens=1)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert packed.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for key, gradient in packed.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-5, atol=1e-6 * largest, msg=key)


def test_passes_are_bounded_by_tokens_and_lose_nothing(student: LanguageModel) -> None:
    lengths = [7, 30, 7, 1, 12, 19, 7, 5, 64, 2]
    for max_tokens in (1, 20, 64, 100, 1000, None):
        found = list(passes(student, lengths, max_tokens))
        assert sorted(index for rows in found for row in rows for index in row) == list(range(len(lengths)))
        assert found == list(passes(student, lengths, max_tokens))
        longest = [max(lengths[index] for row in rows for index in row) for rows in found]
        assert longest == sorted(longest, reverse=True)
        for rows in found:
            columns = len(rows) * max(sum(lengths[index] for index in row) for row in rows)
            assert columns <= (max_tokens or 1000) or sum(map(len, rows)) == 1
    assert len(found) == 1


def test_sequences_of_different_lengths_leave_little_padding(student: LanguageModel) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randn(64, generator=generator).mul(0.8).add(4).exp().int().clamp(2, 400).tolist()
    (rows,) = passes(student, lengths, None)
    columns = len(rows) * max(sum(lengths[index] for index in row) for row in rows)
    assert len(lengths) * max(lengths) > 3 * columns
    assert columns < 1.1 * sum(lengths)


def test_sequences_of_one_length_have_a_row_each(student: LanguageModel) -> None:
    """Then attention needs no mask, and computes nothing between sequences."""
    assert list(passes(student, [34] * 5, None)) == [[[0], [1], [2], [3], [4]]]


@pytest.mark.parametrize("max_tokens", [1, 30, 64, None])
@torch.no_grad()
def test_states_are_in_order_whatever_the_passes(student: LanguageModel, max_tokens: int | None) -> None:
    where, states = collect(student, readings(), max_tokens=max_tokens or 10_000)
    torch.testing.assert_close(states.hidden_TD, alone(student, readings()), rtol=1e-4, atol=1e-5)
    assert where.token_T.tolist() == [token for row in readings() for token in row.ids[1:]]


@pytest.mark.parametrize("max_tokens", [1, 30, 64])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_passes_bounded_by_tokens_add_up_to_one_gradient(
    student: LanguageModel, max_tokens: int, checkpointing: bool
) -> None:
    loss, whole = gradients(student)
    if checkpointing:
        checkpoint_activations(student)
        student.model.train()
    bounded_loss, bounded = gradients(student, max_tokens)
    assert bounded_loss == pytest.approx(loss, rel=1e-6)
    for key, gradient in bounded.items():
        torch.testing.assert_close(gradient, whole[key], rtol=1e-5, atol=1e-6 * float(whole[key].abs().max()), msg=key)


@pytest.mark.parametrize("name", ["GPT-2", "OPT"])
def test_a_student_with_dropout_repeats_with_its_seed_alone(name: str) -> None:
    model = make(name)
    model.model.train()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(gradients(model)[0])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_each_kind_of_attention_keeps_packed_sequences_apart(student: LanguageModel, attention: str) -> None:
    student.model.set_attn_implementation(attention)
    assert packs(student)
    torch.testing.assert_close(read(student, readings())[1].hidden_TD, alone(student, readings()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_attention_that_skips_other_sequences_has_one_row(
    student: LanguageModel, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_probe", lambda model: True)  # it runs on a GPU alone, or compiles for a minute
    student.model.config._attn_implementation = attention
    assert [len(rows) for rows in passes(student, LENGTHS, None)] == [1]
    assert [[len(row) for row in rows] for rows in passes(student, LENGTHS, 65)] == [[2], [5]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_proven_within_its_rounding(dtype: torch.dtype) -> None:
    model = make("Qwen3", dtype=dtype)
    assert packs(model)
    assert not packs(make("Mamba", dtype=dtype))
    states, expected = read(model, readings())[1].hidden_TD.float(), alone(model, readings()).float()
    assert float((states - expected).norm() / expected.norm()) < 2e-2


def test_the_proof_draws_no_random_number_and_is_made_once(
    student: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    student.model.train()
    state = torch.get_rng_state()
    assert packs(student)
    assert torch.equal(torch.get_rng_state(), state)
    assert student.model.training
    monkeypatch.setattr(packing, "_probe", lambda model: pytest.fail("proven again"))
    assert packs(student)


@torch.no_grad()
def test_weights_that_are_not_finite_prove_nothing(student: LanguageModel) -> None:
    student.head_VD[:] = torch.nan  # tied to the embeddings
    assert not packs(student)


def test_rollouts_without_a_chosen_token_have_no_pass(student: LanguageModel) -> None:
    rollout = Rollout(Prompt("p", text="x"), (5, 6), (7, 8), (False, False), (0.0, 0.0), (Span(0, 2),), "stop")
    assert list(read_own(student, [rollout], max_tokens=8)) == []
    where, states = collect(student, [], max_tokens=8)
    assert len(where) == len(states.hidden_TD) == 0
    mixed = [rollout, replace(rollout, completion_mask=(True, True))]
    assert [where.rollout_T.tolist() for where, _ in read_own(student, mixed)] == [[1, 1]]


def test_a_run_says_once_which_models_are_padded(tmp_path: Path) -> None:
    bloom = make("BLOOM")
    tree = small_run(tmp_path, optimizer={"steps": 2}, report=False)
    opd.train(tree, student=bloom, teacher=make_model(1), prompts=PROMPTS)
    events = [json.loads(line).get("event") for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (said,) = [event["text"] for event in events if event]
    assert said.startswith("student: 'tiny BLOOM' does not keep packed sequences apart")
