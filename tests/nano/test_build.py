"""The build script on a small scale, and the bundled models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd.errors import ConfigError
from opd.nano.build import MODELS, build, byte_tokenizer, encode
from opd.nano.tokenizer import END, build_tokenizer
from opd.nano.traces import Turn

SHIPPED = Path(build.__code__.co_filename).parent / "models"


@pytest.mark.slow
def test_a_small_build_loads_as_a_model(tmp_path: Path) -> None:
    folder = build("math-base", tmp_path, scale=0.005)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    messages = [{"role": "user", "content": "3 4 + 1 2"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=4, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_the_weights_depend_on_the_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tools-base", replace(MODELS["tools-base"], batch=4))
    first, again, other = (
        load_file(build("tools-base", tmp_path / name, scale=0.001, seed=seed) / "model.safetensors")
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_wrong_digits_are_not_in_the_loss_with_either_tokenizer() -> None:
    answer = Turn("assistant", "5 + 6 = 9 carry 1 ; answer 9 1", skip=(4, 9))
    for tokenizer in (build_tokenizer(), byte_tokenizer()):
        ids, weights = encode(tokenizer, [[Turn("user", "5 + 6", trained=False), answer]], context_weight=0.0)
        read = tokenizer.decode(ids[0][weights[0] > 0], skip_special_tokens=False)
        assert read.replace(f" {END}", END) == f"5 + 6 = carry 1 ; answer 1{END}"


def test_an_unknown_model_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nano model: unknown name 'tool-base'. Fix: use one of tools-base"):
        build("tool-base", tmp_path)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_shipped_models_have_this_tokenizer(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / name)
    built = MODELS[name].tokenizer()
    assert tokenizer.get_vocab() == built.get_vocab()
    assert tokenizer.chat_template == built.chat_template
    assert AutoModelForCausalLM.from_pretrained(SHIPPED / name).config.vocab_size == len(tokenizer)
