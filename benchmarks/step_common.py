"""What the workers of the step benchmarks share. Needs torch and safetensors alone."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

MB = 1e6
CHECKED = ("embed_tokens", "layers.0.")
"""Parameters whose gradients are compared: those that a whole backward pass reaches last."""


def clock(device: str) -> Callable[[], float]:
    """Seconds of CPU time; on a GPU the time until its work is done."""
    passed = time.perf_counter

    def done() -> float:
        torch.cuda.synchronize()
        return passed()

    return done if device == "cuda" else time.process_time


class Memory:
    """Most memory that the process held: on a CPU beyond that before its first step (on Linux), on a GPU in all."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.before: float | None = None

    def start(self) -> None:
        """Before a step; the first call counts."""
        if self.before is None and self.device == "cpu":
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.before = pages * resource.getpagesize() / MB

    def peak(self) -> float:
        """MB."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() / MB
        assert self.before is not None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB - self.before


class Check:
    """One step on given answers, whose gradient is compared with an exact one.

    Args:
        folder: has ``answers.json``, pairs of prompt ids and completion ids, and ``reference.safetensors``; None for
            no check.
    """

    def __init__(self, folder: str | None) -> None:
        self.folder = folder and Path(folder)
        self.error = math.nan
        """Length of the difference of both gradients, each divided by its own length: clipping does not count."""
        self.answers: dict[tuple[int, ...], list[int]] = {}
        if self.folder:
            pairs = json.loads((self.folder / "answers.json").read_text())
            self.answers = {tuple(prompt): answer for prompt, answer in pairs}

    def take(self, prompts: Iterable[Sequence[int]]) -> list[list[int]] | None:
        """The given answers, once; None if there are none for these prompts."""
        asked = [tuple(prompt) for prompt in prompts]
        if not asked or any(prompt not in self.answers for prompt in asked):
            return None
        found, self.answers = [self.answers[prompt] for prompt in asked], {}
        return found

    def compare(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Note the error of the first gradient."""
        if not self.folder or not math.isnan(self.error):
            return
        right = load_file(self.folder / "reference.safetensors")
        found = {name: p.grad.cpu().double() for name, p in parameters if p.grad is not None and name in right}
        assert found.keys() == right.keys(), sorted(right.keys() - found.keys())
        pairs = [(found[name], exact.double()) for name, exact in right.items()]
        lengths = [math.sqrt(sum(float(side.square().sum()) for side in sides)) for sides in zip(*pairs, strict=True)]
        off = sum(float((got / lengths[0] - exact / lengths[1]).square().sum()) for got, exact in pairs)
        self.error = math.sqrt(off)
