"""Decoding in buffers of a fixed size: token by token what the loop with a growing cache generates.

A GPU captures the step as a graph; here the same step runs without one.
"""

from __future__ import annotations

import random

import pytest
import torch

from opd.axes.engines.hf import engine_on_gpu
from opd.engines import fixed
from opd.engines.fixed import FixedRows, can_be_fixed, size_for
from opd.engines.hf import HFEngine
from opd.models.adapters import new_adapter
from opd.models.language import LanguageModel
from opd.types import Generation, Sampling
from support.architectures import ARCHITECTURES, make

STATES = "Qwen3-Next, Qwen3.5, Mamba, Mamba 2, Falcon-Mamba, LFM2, Jamba, Falcon-H1, Bamba, RecurrentGemma"
GROWING = {*STATES.split(", "), "Granite 4, hybrid", "Nemotron-H", "MiniMax"}
"""Architectures whose cache is more than keys and values."""
REFUSED = {"RWKV", "xLSTM"}
"""Architectures that no engine of ours can carry from token to token."""
DISTANCES = {"BLOOM", "Falcon, ALiBi"}
"""Architectures that take no mask of ours; the check before a run finds that out."""
READ_BACK = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")
DRAWN = Sampling(temperature=0.8, top_k=12, top_p=0.95)


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several sizes of a step in short texts."""
    monkeypatch.setattr(fixed, "LEAST_SLOTS", 2)
    monkeypatch.setattr(fixed, "LEAST_POSITIONS", 8)


def contexts(number: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(4, 31) for _ in range(rng.randrange(1, 30))] for _ in range(number)]


def generated(
    model: LanguageModel, *, is_fixed: bool, number: int = 11, rows: int = 4, seed: int = 0, **options: object
) -> list[Generation]:
    """Uneven prompts and limits, ends by chance, and rows that wait and join."""
    engine = HFEngine(model, max_rows=rows, fixed=is_fixed)
    settings: dict[str, object] = {"sampling": DRAWN, "stop_ids": frozenset({2, 5, 9})}
    budgets = [1 + (5 * i) % 13 for i in range(number)]
    return engine.generate(contexts(number), budgets, seed=seed, **settings | options)  # type: ignore[arg-type]


def assert_equal(ours: list[Generation], right: list[Generation]) -> None:
    assert [one.ids for one in ours] == [one.ids for one in right]
    assert [one.stopped for one in ours] == [one.stopped for one in right]
    for one, other in zip(ours, right, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - GROWING - REFUSED - DISTANCES))
def test_tokens_are_those_of_the_growing_cache(name: str) -> None:
    model = make(name)
    assert can_be_fixed(model)
    right = generated(model, is_fixed=False)
    assert len({len(one.ids) for one in right}) > 3
    assert_equal(generated(model, is_fixed=True), right)


@pytest.mark.parametrize("name", sorted(GROWING))
def test_other_caches_grow(name: str) -> None:
    assert not can_be_fixed(make(name))


@pytest.mark.parametrize(("name", "is_fixed"), [("Qwen3", True), ("BLOOM", False), ("Mamba", False)])
def test_the_engine_of_a_run_is_fixed_where_the_model_passes_its_check(name: str, is_fixed: bool) -> None:
    engine, notes = engine_on_gpu(make(name), max_rows=8)
    assert (engine.fixed is not None) == is_fixed
    assert len(notes) == (not is_fixed)
    assert engine.max_rows == 8


def test_a_student_in_float32_generates_with_one_copy_in_bfloat16(student: LanguageModel) -> None:
    mixed = LanguageModel(student.model, student.tokenizer, "mixed", torch.bfloat16)
    engine, _ = engine_on_gpu(mixed, max_rows=8)
    copied = engine.weights.running
    assert copied.autocast is None
    assert copied.model.dtype == torch.bfloat16
    assert copied.model.lm_head.weight is copied.model.model.embed_tokens.weight
    assert copied.model.model.rotary_emb.inv_freq is student.model.model.rotary_emb.inv_freq
    places = [p.data_ptr() for p in copied.model.parameters()]
    with torch.no_grad():
        student.model.model.norm.weight.mul_(2)
    assert not torch.equal(copied.model.model.norm.weight, student.model.model.norm.weight.bfloat16())
    engine.sync()
    for own, live in zip(copied.model.parameters(), student.model.parameters(), strict=True):
        assert torch.equal(own, live.bfloat16())
        assert live.dtype == torch.float32
    assert places == [p.data_ptr() for p in copied.model.parameters()]  # or a graph would read what was there
    assert generated(mixed, is_fixed=True)


@pytest.mark.parametrize("kind", ["bfloat16", "adapter"])
def test_a_student_in_its_own_dtype_and_an_adapter_need_no_copy(kind: str) -> None:
    model = make("Qwen3", dtype=torch.bfloat16)
    if kind == "adapter":
        model = LanguageModel(new_adapter(model.model, rank=2, alpha=4), model.tokenizer, "adapter")
    mixed = LanguageModel(model.model, model.tokenizer, "mixed", torch.bfloat16)
    engine, notes = engine_on_gpu(mixed, max_rows=8)
    assert engine.weights.running is mixed
    assert engine.fixed is not None
    assert not notes
    assert_equal(
        generated(mixed, is_fixed=True),
        engine_on_gpu(mixed, max_rows=4)[0].generate(
            contexts(11), [1 + (5 * i) % 13 for i in range(11)], seed=0, sampling=DRAWN, stop_ids=frozenset({2, 5, 9})
        ),
    )


@pytest.mark.parametrize("rows", [1, 3, 8, 64])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0), DRAWN])
def test_however_many_rows_decode_at_once(student: LanguageModel, rows: int, sampling: Sampling) -> None:
    given = {"number": 23, "rows": rows, "sampling": sampling, "seed": 7}
    assert_equal(generated(student, is_fixed=True, **given), generated(student, is_fixed=False, **given))  # type: ignore[arg-type]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_each_kind_of_attention(attention: str) -> None:
    model = make("Gemma 3")
    model.model.set_attn_implementation(attention)
    assert_equal(generated(model, is_fixed=True), generated(model, is_fixed=False))


def test_one_object_serves_call_after_call_and_other_weights(student: LanguageModel) -> None:
    engine, growing = HFEngine(student, max_rows=4, fixed=True), HFEngine(student, max_rows=4)
    for call, number in enumerate((3, 9, 2)):  # larger buffers in the second call, and the same ones in the third
        given = contexts(number + call)[call:]
        for sampling in (Sampling(), Sampling(temperature=0)):
            options = {"sampling": sampling, "stop_ids": frozenset({2}), "seed": call}
            ours, right = (one.generate(given, [4 + call] * number, **options) for one in (engine, growing))  # type: ignore[arg-type]
            assert_equal(ours, right)
        with torch.no_grad():
            for parameter in student.model.parameters():
                parameter.mul_(1.01)


def test_rows_move_together_when_fewer_slots_are_enough(
    student: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []
    step = FixedRows._step

    def counted(self: FixedRows, *args: object) -> None:
        sizes.append(self.step_size)
        step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(FixedRows, "_step", counted)
    generated(student, is_fixed=True, number=8, rows=8, stop_ids=frozenset())
    slots, positions = zip(*sizes, strict=True)
    assert list(slots) == sorted(slots, reverse=True)
    assert set(slots) == {8, 4, 2}
    assert set(positions) <= {8, 16, 32, 40}


def test_sizes_of_a_step_are_few() -> None:
    assert {size_for(n, 8, 100) for n in range(1, 101)} == {8, 16, 32, 64, 100}


def test_a_step_has_no_value_on_the_host(student: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph cannot read values back, so a step that does would not be captured."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoSync(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            name = func.overloadpacket.__name__
            assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal"), (
                name
            )
            if name == "index":
                assert all(index is None or index.dtype != torch.bool for index in args[1]), "a mask as index"
            return func(*args, **(kwargs or {}))

    step = FixedRows._step

    def watched(self: FixedRows, *args: object) -> None:
        with NoSync():
            step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(FixedRows, "_step", watched)
    for sampling in (DRAWN, Sampling(temperature=0)):
        assert generated(student, is_fixed=True, sampling=sampling)
