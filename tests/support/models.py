"""Random language models of a few thousand weights."""

from __future__ import annotations

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from opd.models.language import LanguageModel
from support.tokenizers import make_tokenizer


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
