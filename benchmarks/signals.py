"""What a signal costs at a real model's size: top k through the heads against hidden states without any head.

    python benchmarks/signals.py [--tokens 512] [--vocab 151936] [--width 1024] [--layers 28] [--repeats 3]

Only the loss, forward and backward, from states that both models have computed; V = 151,936, D = 1,024 and 28 blocks
are those of Qwen3-0.6B. Each measurement is a process of its own, one thread, repeats alternating, medians quoted.
Memory is the peak beyond the states and heads that both models have anyway, gradients included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from loss_peer_common import PeakMemory

from opd.losses import Support, hidden_distance, linear_divergence

SIGNALS = ("full vocabulary", "top 16", "hidden states, all blocks", "hidden states, last block")


def work(signal: str, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of processor time and extra bytes of one loss with its gradients."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weight = torch.full((args.tokens,), 1 / args.tokens)
    if signal.startswith("hidden"):
        layers = args.layers if "all" in signal else 1
        ours, theirs = (torch.randn(args.tokens, layers, args.width) for _ in range(2))
        ours.requires_grad_()

        def loss() -> torch.Tensor:
            return hidden_distance(ours, theirs, weight=weight)
    else:
        states, heads = (
            [torch.randn(rows, args.width) * scale for _ in range(2)]
            for rows, scale in ((args.tokens, 1.0), (args.vocab, 2 / args.width**0.5))
        )
        states[0].requires_grad_()
        heads[0].requires_grad_()
        support = Support(16, whose="student", rest="tail") if signal == "top 16" else None

        def loss() -> torch.Tensor:
            return linear_divergence(
                states[0], heads[0], states[1], heads[1], weight=weight, divergence="reverse_kl", support=support
            )

    with PeakMemory() as memory:
        started = time.process_time()
        loss().backward()
        seconds = time.process_time() - started
    return {"seconds": seconds, "bytes": memory.peak - memory.before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", choices=SIGNALS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(work(args.work, args)))
        return
    seen: dict[str, list[dict[str, float]]] = {signal: [] for signal in SIGNALS}
    for _ in range(args.repeats):
        for signal in SIGNALS:
            command = [sys.executable, __file__, *sys.argv[1:], "--work", signal]
            seen[signal].append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    print(
        f"{args.tokens} positions, V = {args.vocab:,}, D = {args.width:,}, {args.layers} blocks, float32, one thread\n"
    )
    print("| signal | seconds | extra MB |\n|---|---|---|")
    for signal, runs in seen.items():
        seconds, size = (statistics.median(run[key] for run in runs) for key in ("seconds", "bytes"))
        print(f"| {signal} | {seconds:.2f} | {size / 1e6:,.0f} |")


if __name__ == "__main__":
    main()
