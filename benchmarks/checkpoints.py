"""What a checkpoint costs a run: written between two steps, and beside the next ones.

    python benchmarks/checkpoints.py [--hidden 512 --layers 12] [--folder A_DISK]

A random Qwen3 student distils from a smaller random teacher, float32, a checkpoint after every ``--every`` steps.
Seconds are of the wall clock, since a disk is waited for: of a step without its checkpoint, and those by which a
checkpoint holds the run up (the copy, and the wait for the one before). Variants alternate.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

import opd
from opd.models.bundled import resolve
from opd.training.checkpoint import Checkpoints

NEVER = 10**6


def make_model(folder: Path, hidden: int, layers: int) -> int:
    """A random model with the bundled models' tokenizer; returns its number of parameters."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("nano/math-base"))
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 128, head_dim=64, max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(hidden)
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def measured(tree: dict[str, Any], out: Path, **checkpoint: Any) -> tuple[float, list[float]]:
    """Seconds of a whole run, and of each call that may save."""
    saving: list[float] = []
    save = Checkpoints.save

    def timed(self: Checkpoints, *args: Any, **kwargs: Any) -> None:
        began = time.perf_counter()
        save(self, *args, **kwargs)
        saving.append(time.perf_counter() - began)

    with mock.patch.object(Checkpoints, "save", timed):
        began = time.perf_counter()
        opd.train({**tree, "checkpoint": checkpoint, "out": str(out)})
    return time.perf_counter() - began, saving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="on the disk to measure; by default the temporary folder")
    args = parser.parse_args()
    held: dict[str, list[float]] = {"between": [], "beside": []}
    plain: list[float] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        student, teacher = Path(folder) / "student", Path(folder) / "teacher"
        size = make_model(student, args.hidden, args.layers)
        make_model(teacher, args.hidden // 2, args.layers // 2)
        tree = {
            "student": str(student), "teacher": {"model": str(teacher)}, "prompts": {"task": "math", "split": "train"},
            "loss": {"divergence": "reverse_kl"}, "rollout": {"prompts_per_step": 8, "max_new_tokens": 32},
            "optimizer": {"lr": 1e-9, "steps": args.steps}, "report": False, "log": [], "device": "cpu",
        }  # fmt: skip
        for number in range(args.rounds):
            for name in held:
                out = Path(folder) / f"{name}-{number}"
                seconds, saving = measured(tree, out, every=args.every, keep=1, beside=name == "beside")
                held[name] += [sum(saving[:-1]) / (args.steps // args.every - 1)]  # the last one is always waited for
                plain.append((seconds - sum(saving)) / args.steps)
        print(f"{size / 1e6:.0f} M parameters, {12 * size / 1e6:,.0f} MB each, step {statistics.median(plain):.2f} s")
    print("\n| checkpoint | seconds that it holds a run up |\n|---|---|")
    for name, found in held.items():
        print(f"| {name} | {statistics.median(found):.2f} ({min(found):.2f}–{max(found):.2f}) |")


if __name__ == "__main__":
    main()
