"""Full-vocabulary divergence: opd against the bare matrix products and its peers, one table.

    python benchmarks/loss.py [--divergence forward_kl] [--trl-python VENV/bin/python] [--liger-python VENV/bin/python]
    python benchmarks/loss.py --device cuda --dtype bfloat16 --tokens 4096

Each measurement is a process of its own, one thread, one at a time; repeats alternate between the variants, and
medians are quoted. ``products`` are the four that no method can avoid: both models' logits, and the gradients of
hidden states and head, each as one product. Memory is the peak beyond inputs and returned gradients. Gradient
errors are relative, against float64 whole logits at 128 positions and 16,384 tokens of vocabulary.
Peers have environments of their own, so that their pins do not meet opd's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from loss_peer_common import Inputs, full_logits, parser, work
from torch import Tensor

from opd.losses import linear_divergence

HERE = Path(__file__).parent
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Relative; variants that disagree by more do not compute the same thing, and comparing their times means nothing."""


class Products:
    """The four matrix products alone; what they compute is no loss.

    Logits go to memory that exists before the clock starts: the operating system's work of finding it is not theirs.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        dtype = getattr(torch, options.dtype)
        self.logits_TV = torch.zeros(options.tokens, options.vocab, device=options.device, dtype=dtype)

    @torch.no_grad()
    def __call__(self, inputs: Inputs, divergence: str) -> Tensor:
        logits_TV = self.logits_TV[: len(inputs.hidden_TD)]
        torch.mm(inputs.teacher_hidden_TD, inputs.teacher_head_VD.T, out=logits_TV)
        torch.mm(inputs.hidden_TD, inputs.head_VD.T, out=logits_TV)
        inputs.hidden_TD.grad, inputs.head_VD.grad = logits_TV @ inputs.head_VD, logits_TV.T @ inputs.hidden_TD
        return torch.tensor(torch.nan)


def opd(inputs: Inputs, divergence: str) -> Tensor:
    """opd.losses.linear_divergence with its defaults."""
    student, teacher = (inputs.hidden_TD, inputs.head_VD), (inputs.teacher_hidden_TD, inputs.teacher_head_VD)
    loss = linear_divergence(*student, *teacher, weight=inputs.weight_T, divergence=divergence)
    loss.backward()
    return loss.detach()


OWN: dict[str, Callable[[argparse.Namespace], Callable[[Inputs, str], Tensor]]] = {
    "products": Products,
    "opd": lambda options: opd,
    "full logits": lambda options: full_logits,
}
"""Variants of this environment, each made from the options."""


def run(command: list[str], options: argparse.Namespace, width: int, *flags: str) -> dict[str, Any]:
    """One measurement in a new process."""
    asked = [f"--{name}={getattr(options, name)}" for name in ("divergence", "tokens", "vocab", "device", "dtype")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    finished = subprocess.run(
        [*command, *asked, f"--width={width}", *flags], capture_output=True, text=True, env=environment, cwd=HERE
    )
    if finished.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{finished.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def rows(commands: dict[str, list[str]], options: argparse.Namespace, width: int) -> list[str]:
    """The table's rows for one width."""
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for _ in range(options.repeats):
        for name, command in commands.items():
            measured[name].append(run(command, options, width))
    middle = {
        name: {key: statistics.median(one[key] for one in runs) for key in ("seconds", "extra_bytes", "loss")}
        for name, runs in measured.items()
    }
    lines = []
    for name, row in middle.items():
        ratio, memory, errors = row["seconds"] / middle["products"]["seconds"], "–", "– | –"
        if name != "products":
            off = abs(row["loss"] / middle["opd"]["loss"] - 1)
            assert off < LOSS_TOLERANCE[options.dtype], f"{name} computes another loss: {row['loss']}, off by {off:.1e}"
            memory = f"{row['extra_bytes'] / 1e6:,.0f}"
            errors = " | ".join(f"{e:.1e}" for e in run(commands[name], options, width, "--check")["errors"])
        lines.append(f"| {width} | {name} | {row['seconds']:.4g} | {ratio:.2f} | {memory} | {errors} |")
    return lines


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--repeats", type=int, default=3)
    options_of.add_argument("--trl-python", help="interpreter of an environment with trl")
    options_of.add_argument("--liger-python", help="interpreter of an environment with liger-kernel")
    options_of.add_argument("--variant", choices=tuple(OWN), help="worker: measure this one")
    options = options_of.parse_args()
    if options.variant:
        work(OWN[options.variant](options), options)
        return
    commands = {name: [sys.executable, __file__, f"--variant={name}"] for name in OWN}
    for peer in ("trl", "liger"):
        if python := getattr(options, f"{peer}_python"):
            commands[peer] = [python, str(HERE / f"loss_peer_{peer}.py")]
    print(
        f"{options.divergence}, {options.tokens} positions, vocabulary {options.vocab:,}, {options.device}, "
        f"{options.dtype}, torch {torch.__version__}, median of {options.repeats}\n\n"
        "| hidden | variant | seconds | ÷ products | extra MB | error grad hidden | error grad head |\n"
        "|---|---|---|---|---|---|---|"
    )
    for width in options.width:
        print("\n".join(rows(commands, options, width)), flush=True)


if __name__ == "__main__":
    main()
