"""What ten teachers cost beside one: seconds a step and memory, each in a process of its own.

    python benchmarks/teachers.py [--teachers 10] [--steps 6]

Random Qwen3 models of one architecture and a student of the same size; every prompt belongs to one of ten domains. With
one teacher it reads them all, with ten each reads its own. Times are medians over steps, the first left out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HIDDEN, LAYERS, MLP, VOCAB, DOMAINS = 384, 8, 1536, 16_384, 10


def make(folder: Path, seed: int) -> None:
    """A random model with the nano tokenizer; its head is padded to a larger vocabulary, as real ones are."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from opd.nano.tokenizer import build_tokenizer

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    heads = HIDDEN // 64
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run(root: Path, teachers: int, steps: int) -> None:
    """One run; prints a line of JSON."""
    import opd

    names = [f"d{n}" for n in range(DOMAINS)]
    prompts = [{"prompt": f"{a} + {b}", "domain": names[(a + b) % DOMAINS]} for a in range(12) for b in range(12)]
    path = root / "prompts.jsonl"
    path.write_text("".join(json.dumps(p) + "\n" for p in prompts))
    if teachers == 1:
        models = {"all": {"model": str(root / "t0"), "domains": names}}
    else:
        models = {n: {"model": str(root / f"t{i % teachers}"), "domains": [n]} for i, n in enumerate(names)}
    out = Path(tempfile.mkdtemp(dir=root)) / "run"
    opd.train(
        {
            "student": str(root / "student"),
            "prompts": str(path),
            "teacher": {"models": models},
            "loss": {"divergence": "reverse_kl"},
            "rollout": {"prompts_per_step": 40, "max_new_tokens": 32},
            "optimizer": {"steps": steps, "lr": 1e-5},
            "checkpoint": {"every": 1000},
            "threads": 1,
            "log": [],
            "out": str(out),
        }
    )
    rows = [json.loads(line)["train"] for line in (out / "metrics.jsonl").read_text().splitlines()][1:]
    parts = {name: statistics.median(row[name] for row in rows) for name in ("rollout_s", "teacher_s", "update_s")}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**parts, "step_s": statistics.median(sum(r[p] for p in parts) for r in rows), "peak_mib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=int, default=10)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return run(args.root, args.one, args.steps)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory(prefix="opd-teachers-") as folder:
        root = Path(folder)
        for name, seed in [("student", 99), *((f"t{n}", n) for n in range(args.teachers))]:
            make(root / name, seed)
        size = (root / "t0" / "model.safetensors").stat().st_size / 2**20
        found: dict[int, list[dict[str, float]]] = {}
        for number in (1, args.teachers, 1, args.teachers):  # side by side, twice: the machine is noisy
            command = [sys.executable, __file__, "--one", str(number), "--root", folder, "--steps", str(args.steps)]
            said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            found.setdefault(number, []).append(json.loads(said.splitlines()[-1]))
    print(f"weights of one teacher: {size:.0f} MiB\n")
    print("| teachers | rollout s | teachers s | update s | step s | peak MiB |\n|---|---|---|---|---|---|")
    best = {number: {k: min(r[k] for r in runs) for k in runs[0]} for number, runs in found.items()}
    for number, row in best.items():
        cells = [row[k] for k in ("rollout_s", "teacher_s", "update_s", "step_s")]
        print(f"| {number} | " + " | ".join(f"{c:.2f}" for c in cells) + f" | {row['peak_mib']:.0f} |")
    many, one = best[args.teachers], best[1]
    print(f"\n{args.teachers} teachers: {many['step_s'] / one['step_s']:.2f} × the time of one a step, ", end="")
    print(f"{many['peak_mib'] - one['peak_mib']:+.0f} MiB at the peak")
    return None


if __name__ == "__main__":
    main()
