"""What fits on a GPU: the memory of runs with Qwen3 students, by the formula that doctor uses. Nothing is allocated.

    python benchmarks/memory.py

The table of docs/gpu-sizes.md. tests/evaluation/test_memory.py holds the formula against measured peaks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from opd.evaluation.memory import Memory, Work, memory_of
from opd.models.language import LanguageModel

SIZES: dict[str, dict[str, Any]] = {
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
}
"""The published shapes of Qwen3, dense."""

PAIRS = [("0.6B", "1.7B"), ("0.6B", "4B"), ("1.7B", "8B"), ("4B", "8B")]
RANK = 16
CARDS = (24, 48, 80)
"""GB."""

WORK = Work(rows=64, length=256 + 1024, decoded=64, tokens=8192, teacher_tokens=16_384, on_gpu=True)
"""64 rollouts of at most 1,024 tokens after prompts of 256; passes of 8,192 tokens."""


def qwen3(size: str, dtype: torch.dtype) -> LanguageModel:
    """A model; inside a ``FakeTensorMode`` its tensors take no memory."""
    tied = size in ("0.6B", "1.7B", "4B")
    config = Qwen3Config(
        vocab_size=151_936, num_key_value_heads=8, head_dim=128, tie_word_embeddings=tied, **SIZES[size]
    )
    torch.set_default_dtype(dtype)
    model = Qwen3ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    tokenizer = SimpleNamespace(get_vocab=lambda: {"the last": 151_935})
    return LanguageModel(model, tokenizer, size)


class Adapted(nn.Module):
    """A frozen linear layer with a LoRA beside it; peft moves its tensors in a way that fake ones refuse."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x) + self.up(self.down(x))
        return result


def student(size: str, *, lora: bool) -> LanguageModel:
    """Float32 weights that train, or float32 adapters on a frozen bfloat16 base."""
    made = dataclasses.replace(qwen3(size, torch.bfloat16 if lora else torch.float32), autocast=torch.bfloat16)
    if lora:
        made.model.requires_grad_(False)
        for block in made.model.model.layers.modules():
            for name, layer in list(block.named_children()):
                if isinstance(layer, nn.Linear) and not isinstance(block, Adapted):
                    setattr(block, name, Adapted(layer))
    return made


def cards(need: Memory) -> Iterator[str]:
    """For each card, whether the run fits with a tenth of the memory free."""
    for size in CARDS:
        yield "yes" if need.peak * 1.1 < size * 1e9 else "–"


def main() -> None:
    head = ["student", "teacher", "trains", "activations", "peak", "always there", "update"]
    head += [f"{size} GB" for size in CARDS]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for ours, theirs in PAIRS:
        for lora in (False, True):
            for again in (False, True):
                work = dataclasses.replace(WORK, checkpointing=again)
                with FakeTensorMode():
                    need = memory_of(student(ours, lora=lora), [qwen3(theirs, torch.bfloat16)], work)
                parts = (f"{part / 1e9:.1f}" for part in (need.peak, need.state, need.update))
                name = f"LoRA, rank {RANK}" if lora else "all weights"
                kept = "computed again" if again else "kept"
                print("| " + " | ".join([ours, theirs, name, kept, *parts, *cards(need)]) + " |", flush=True)


if __name__ == "__main__":
    main()
