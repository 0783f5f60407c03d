"""Random language models of a few thousand weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from opd.models.language import LanguageModel
from support.tokenizers import make_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "a padded head": {"vocab": 64},
    "an untied head": {"tied": False},
    "two EOS ids": {"eos": (2, 23)},
    "all of it": {"vocab": 64, "tied": False, "eos": (2, 23)},
}
"""Arguments of ``make_model`` for students that published models resemble and the bundled ones do not."""


def make_model(
    seed: int = 0,
    *,
    layers: int = 2,
    hidden: int = 32,
    vocab: int | None = None,
    template: bool = True,
    tied: bool = True,
    eos: Sequence[int] | None = None,
    tokenizer: Any = None,
    positions: int = 256,
) -> LanguageModel:
    """A random Qwen3 of about 30,000 parameters, with enough spread in its logits to tell tokens apart.

    Args:
        vocab: rows of the head; by default those of the tokenizer, which are 31.
        tied: whether the head's weights are those of the embeddings.
        eos: ids at which generation stops; by default the tokenizer's EOS id alone.
        tokenizer: instead of the one of 31 tokens.
        positions: the most that it can hold.
    """
    torch.manual_seed(seed)
    tokenizer = tokenizer or make_tokenizer(template=template)
    config = Qwen3Config(
        vocab_size=vocab or len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        eos_token_id=list(eos) if eos else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.ndim > 1 else None
    return LanguageModel(model, tokenizer, f"tiny-{seed}")
