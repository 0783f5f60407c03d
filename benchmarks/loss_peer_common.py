"""What every variant of the loss benchmark shares: inputs, clock, memory, float64 reference. Needs torch alone.

A variant is one function; ``main`` measures it in a process of its own and prints one line of JSON. The inputs
come from a seed, so that peers in other environments (with the same torch) compute the same loss.
Suffixes: T positions, V vocabulary, D hidden units.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

CHECK_TOKENS, CHECK_VOCAB = 128, 16_384
"""Size of the float64 comparison: whole logits in float64 at full size would take minutes."""
SAMPLE_SECONDS = 0.02
"""Between two looks at the memory; chunks live for longer."""


@dataclass
class Inputs:
    """Student (gradients on) and teacher; weight 1/T each."""

    hidden_TD: Tensor
    head_VD: Tensor
    teacher_hidden_TD: Tensor
    teacher_head_VD: Tensor
    weight_T: Tensor

    def first(self, tokens: int) -> Inputs:
        """The same with fewer positions."""
        hidden = self.hidden_TD.detach()[:tokens].clone().requires_grad_()
        return Inputs(
            hidden, self.head_VD, self.teacher_hidden_TD[:tokens], self.teacher_head_VD, self.weight_T[:tokens]
        )

    def gradients(self) -> list[Tensor]:
        """Both gradients, taken off the tensors."""
        both = [t.grad for t in (self.hidden_TD, self.head_VD)]
        self.hidden_TD.grad = self.head_VD.grad = None
        assert both[0] is not None
        assert both[1] is not None
        return [g for g in both if g is not None]


Variant = Callable[[Inputs, str], Tensor]
"""(inputs, divergence) -> loss []; leaves gradients in ``hidden_TD.grad`` and ``head_VD.grad``."""


def make_inputs(tokens: int, vocab: int, width: int, *, device: str, dtype: torch.dtype) -> Inputs:
    """Random models whose logits have standard deviation 2."""
    random = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=random, device=device) * scale).to(dtype)

    return Inputs(
        normal(tokens, width).requires_grad_(),
        normal(vocab, width, scale=2 / width**0.5).requires_grad_(),
        normal(tokens, width),
        normal(vocab, width, scale=2 / width**0.5),
        torch.full((tokens,), 1 / tokens, device=device),
    )


def full_logits(inputs: Inputs, divergence: str) -> Tensor:
    """The plain way: both logits whole, float32 softmax, autograd. In float64 it is the reference."""
    precision = torch.float64 if inputs.hidden_TD.dtype == torch.float64 else torch.float32
    log_p = (inputs.hidden_TD @ inputs.head_VD.T).log_softmax(-1, dtype=precision)
    with torch.no_grad():
        log_q = (inputs.teacher_hidden_TD @ inputs.teacher_head_VD.T).log_softmax(-1, dtype=precision)
    if divergence == "forward_kl":
        each = (log_q.exp() * (log_q - log_p)).sum(-1)
    elif divergence == "reverse_kl":
        each = (log_p.exp() * (log_p - log_q)).sum(-1)
    else:
        log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
        each = (0.5 * log_q.exp() * (log_q - log_m) + 0.5 * log_p.exp() * (log_p - log_m)).sum(-1)
    loss = (each * inputs.weight_T).sum()
    loss.backward()
    return loss.detach()


def gradient_errors(variant: Variant, divergence: str, width: int, *, device: str, dtype: torch.dtype) -> list[float]:
    """Relative error (norm of the difference over norm) of both gradients against float64, at the reduced size."""
    inputs = make_inputs(CHECK_TOKENS, CHECK_VOCAB, width, device=device, dtype=dtype)
    double = Inputs(*(getattr(inputs, name).detach().double() for name in inputs.__dataclass_fields__))
    double.hidden_TD.requires_grad_()
    double.head_VD.requires_grad_()
    variant(inputs, divergence)
    full_logits(double, divergence)
    pairs = zip(inputs.gradients(), double.gradients(), strict=True)
    return [float((got.double() - right).norm() / right.norm()) for got, right in pairs]


class PeakMemory:
    """Peak of the process's own (anonymous) resident memory, sampled; code pages, which come and go, do not count."""

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = self._now()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def measure(variant: Variant, inputs: Inputs, divergence: str) -> dict[str, float]:
    """Seconds of one call, and its peak memory beyond the inputs and the gradients it returns.

    On a CPU: seconds the process computed (user and system), which other processes disturb least, and resident
    memory as Linux counts it. On a GPU: events, and torch's allocator.
    """
    variant(inputs.first(4), divergence)
    inputs.head_VD.grad = None
    on_gpu = inputs.hidden_TD.is_cuda
    if on_gpu:
        variant(inputs, divergence)
        inputs.gradients()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        loss = variant(inputs, divergence)
        stop.record()
        torch.cuda.synchronize()
        seconds, peak = start.elapsed_time(stop) / 1000, torch.cuda.max_memory_allocated()
    else:
        with PeakMemory() as memory:
            began = time.process_time()
            loss = variant(inputs, divergence)
            seconds = time.process_time() - began
        before, peak = memory.before, memory.peak
    returned = sum(g.numel() * g.element_size() for g in inputs.gradients())
    return {"seconds": seconds, "extra_bytes": max(peak - before - returned, 0), "loss": float(loss)}


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that say what is computed, the same for the benchmark and its workers."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--divergence", choices=("forward_kl", "reverse_kl", "jsd"), default="forward_kl")
    options.add_argument("--tokens", type=int, default=512)
    options.add_argument("--vocab", type=int, default=151_936)
    options.add_argument("--width", type=int, nargs="+", default=[1024, 2048])
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options.add_argument("--check", action="store_true", help="worker: gradient errors instead of time and memory")
    return options


def work(variant: Variant, options: argparse.Namespace) -> None:
    """Measure one variant at one width and print a line of JSON."""
    torch.set_num_threads(1)
    (width,), dtype = options.width, getattr(torch, options.dtype)
    if options.check:
        errors = gradient_errors(variant, options.divergence, width, device=options.device, dtype=dtype)
        print(json.dumps({"errors": errors}))
        return
    inputs = make_inputs(options.tokens, options.vocab, width, device=options.device, dtype=dtype)
    print(json.dumps(measure(variant, inputs, options.divergence)))


def main(variant: Variant) -> None:
    """A peer's whole program."""
    work(variant, parser(None).parse_args())
