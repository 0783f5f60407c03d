"""Shared fixtures: real tiny models made on the spot, one thread, a fixed seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from opd.models.language import LanguageModel

SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"
"""Real models and data, where a checkout has them beside it; tests that need them skip without."""

WORDS = [
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "g",
    "h",
    "i",
    "j",
    "k",
    "l",
    "m",
    "n",
    "o",
    "p",
    "q",
    "r",
    "s",
    "t",
    "system",
    "user",
    "assistant",
    "tool",
    "reminder",
    ":",
    ".",
]

TEMPLATE = (
    "{% for m in messages %}<s> {{ m.role }} {{ m.content }} </s>{% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in ("OPD_HINT_API_KEY", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def make_tokenizer(*, template: bool = True) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of 31 tokens."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    if template:
        fast.chat_template = TEMPLATE
    return fast


def make_byte_tokenizer(texts: Sequence[str], merges: int, *, across_words: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level one that writes spaces in front of words; without merges every token is a byte."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=not across_words)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=258 + merges,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def make_model(
    seed: int = 0, *, layers: int = 2, hidden: int = 32, vocab: int | None = None, template: bool = True
) -> LanguageModel:
    """A random Qwen3 of about 30,000 parameters, with enough spread in its logits to tell tokens apart."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(template=template)
    config = Qwen3Config(
        vocab_size=vocab or len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.ndim > 1 else None
    return LanguageModel(model, tokenizer, f"tiny-{seed}")


@pytest.fixture
def student() -> LanguageModel:
    return make_model(0)


@pytest.fixture
def teacher() -> LanguageModel:
    return make_model(1, layers=3, hidden=48)
