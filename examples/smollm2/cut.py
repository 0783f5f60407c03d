"""A model without blocks in its middle, which cost it least: cut.main(FOLDER, OTHER, first=12, last=8)."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(source: Path, folder: Path, *, first: int = 12, last: int = 8) -> None:
    """Write the smaller model.

    Args:
        first, last: blocks that it keeps. Of SmolLM2's 30, its loss on chat is 4.4 nats a token with 12 and 8, 5.3 with
            10 and 10, and 15.9 with the first 20; the whole model's is 0.5.
    """
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.model.layers = model.model.layers[:first] + model.model.layers[-last:]
    for index, block in enumerate(model.model.layers):
        block.self_attn.layer_idx = index
    model.config.num_hidden_layers = first + last
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:first] + model.config.layer_types[-last:]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
