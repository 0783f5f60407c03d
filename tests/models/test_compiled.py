"""Compiled blocks: the same states and gradients, the same names, and one sentence where torch cannot compile."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.utils import counters

import opd
from opd.errors import ConfigError
from opd.losses import linear_cross_entropy
from opd.models.adapters import new_adapter
from opd.models.compiled import compile_blocks
from opd.models.copies import frozen_copy
from opd.models.forward import Reading, read_all
from opd.models.language import LanguageModel, checkpoint_activations
from support.architectures import make
from support.models import make_model
from support.small_runs import PROMPTS, small_run

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch asks for it
LENGTHS = (40, 3, 17, 9, 2, 25, 12)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Functions that are given to torch to compile; they stay as they are."""
    given: list[Any] = []

    def compile_nothing(function: Any, **_: Any) -> Any:
        given.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return given


def gradients(model: LanguageModel, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Tensor]:
    model.model.zero_grad(set_to_none=True)
    readings = [
        Reading(n, tuple(3 + (n + 7 * i) % 28 for i in range(k)), 0, [*range(1, k)]) for n, k in enumerate(lengths)
    ]
    for scored, states in read_all(model, readings):
        weight_T = torch.full((len(scored),), 0.01)
        linear_cross_entropy(states.hidden_TD, states.head_VD, scored.token_T, weight=weight_T).backward()
    return {name: p.grad.clone() for name, p in model.model.named_parameters() if p.grad is not None}


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5 * largest, msg=name)


@pytest.mark.slow
def test_compiled_code_has_the_gradients_of_every_layout() -> None:
    torch._dynamo.reset()
    model = make("Qwen3")
    layouts = LENGTHS, (30, 28, 27, 5, 8), (64, 9, 40, 12, 31)
    expected = [gradients(model, lengths) for lengths in layouts]
    compile_blocks(model, "student")
    counters.clear()
    for lengths, right in zip(layouts, expected, strict=True):
        assert_equal(gradients(model, lengths), right)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.slow
def test_adapters_train_and_activations_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # traced, and no compiler
    plain = make("Qwen3")
    settings: dict[str, Any] = {"rank": 2, "alpha": 4}
    model = LanguageModel(new_adapter(plain.model, **settings), plain.tokenizer, "adapted")
    expected = gradients(model)
    checkpoint_activations(model)
    model.train()
    compile_blocks(model, "student")
    assert_equal(gradients(model), expected)
    assert all("lora" in name for name in expected)
    assert not counters["graph_break"]


@torch.no_grad()
def test_a_copy_computes_with_its_own_weights(compiled: list[Any]) -> None:
    model = make("Qwen3")
    compile_blocks(model, "student")
    copied, ids = frozen_copy(model), torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    before = copied.layers(ids, None, ())[0]
    for parameter in model.model.parameters():
        parameter.mul_(1.5)
    assert torch.equal(copied.layers(ids, None, ())[0], before)
    assert not torch.equal(model.layers(ids, None, ())[0], before)


@pytest.mark.slow
def test_a_run_trains_and_saves_as_without(tmp_path: Path, compiled: list[Any]) -> None:
    found = []
    for asked in (False, True):
        tree = small_run(tmp_path / str(asked), report=False, optimizer={"steps": 2}, checkpoint={"every": 1})
        tree |= {"compile": asked, "loss": {"anchor": 0.1}}
        opd.train(tree, student=make_model(0), teacher=make_model(1), prompts=PROMPTS)
        found.append(load_file(tmp_path / str(asked) / "model.safetensors"))
        assert len(compiled) == 4 * asked  # student with and without gradients, teacher, and the copy that anchors
    assert found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-5, atol=1e-6, msg=name)
    state = tmp_path / "True" / "checkpoints" / "000002" / "model.safetensors"
    assert not [name for name in load_file(state) if "orig_mod" in name]


def test_what_torch_cannot_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_nothing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no working C++\ncompiler found")

    monkeypatch.setattr(torch, "compile", compile_nothing)
    sentence = r"^compile: torch cannot compile student 'tiny Qwen3' here \(no working C\+\+ compiler found\)\. Fix: "
    with pytest.raises(ConfigError, match=sentence):
        compile_blocks(make("Qwen3"), "student")


def test_a_model_without_known_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opd.models.compiled.GradientCheckpointingLayer", nn.Conv2d)
    with pytest.raises(ConfigError, match=r"^compile: student 'tiny Qwen3' has no blocks that .+ Fix: leave "):
        compile_blocks(make("Qwen3"), "student")
