"""Tokenizers of a few tokens, and real ones where a checkout has them beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
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
