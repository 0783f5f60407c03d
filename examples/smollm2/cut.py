"""The first blocks of a model as a smaller one, with its norm and its head: cut.main(FOLDER, OTHER, blocks=20)."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(source: Path, folder: Path, *, blocks: int = 20) -> None:
    """Write the smaller model."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.model.layers = model.model.layers[:blocks]
    model.config.num_hidden_layers = blocks
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
