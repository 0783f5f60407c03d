"""Losses, rollouts, whole steps and recipes on one GPU: opd against the bare products, whole logits, TRL and Liger.

    python benchmarks/gpu.py                     # at most four minutes; prints tables, writes gpu.json
    python benchmarks/gpu.py --trl-python VENV/bin/python   # with whole steps of TRL, installed apart
    python benchmarks/gpu.py --wheels FOLDER     # installs the peers from a folder of wheels, without a network
    python benchmarks/gpu.py --tables kernels    # the kernels alone, at several sizes of their tiles
    python benchmarks/gpu.py --small             # seconds on a CPU; the numbers mean nothing

Loss: bfloat16 hidden states and heads, forward and backward, median of repeated runs in one process. ``products`` are
the four that no method can avoid: both models' logits, and the gradients of hidden states and head, in chunks of 2,048
positions. Gradient errors are relative norms against float64, all positions and the whole vocabulary, computed in
chunks. Memory is the peak beyond the inputs and the gradients that are returned.

Rollouts: Qwen3 0.6B with random weights, made on the spot, and random prompts; no row ends before its limit. Steps: the
same student with a teacher of 1.7B, opd and TRL's DistillationTrainer each in a process of its own. The first step has
given answers, and its gradient is compared with that of whole float32 logits, row by row. The second warms up, and
medians are of those after it. Recipes: two steps of each on bundled models.

Suffixes: T positions, N positions of a chunk, V vocabulary, D hidden units.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from loss_peer_common import Inputs, Variant, full_logits, make_inputs
from safetensors.torch import save_file
from step import steps_of
from step_common import CHECKED
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from opd.losses import fused, gpu, linear_divergence

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
PRODUCT_CHUNK = 2048
REFERENCE_CHUNK = 256
TILES = ((16, 1, 3), (16, 1, 4), (16, 1, 1), (16, 2, 3), (8, 1, 4), (8, 2, 3), (32, 1, 2), (32, 1, 3))
"""(warps, 16-byte loads of a thread, tiles on their way) to try; the first is the default."""
STEPS_BEFORE = 2
"""Steps that are not timed: the one whose gradient is compared, and one to warm up."""
HERE = Path(__file__).parent
Row = dict[str, Any]


class Clock:
    """What is left of the time, and how long one call takes."""

    def __init__(self, device: str, seconds: float) -> None:
        self.on_gpu = device == "cuda"
        self.ends = time.perf_counter() + seconds

    def left(self) -> float:
        return max(self.ends - time.perf_counter(), 0.0)

    def is_over(self) -> bool:
        return not self.left()

    def seconds(self, call: Callable[[], object], repeats: int) -> float:
        """The median of repeated calls; what comes first, compilation included, is not counted."""
        call()
        call()
        taken = []
        for _ in range(repeats):
            if self.on_gpu:
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                start.record()
                call()
                stop.record()
                torch.cuda.synchronize()
                taken.append(start.elapsed_time(stop) / 1000)
            else:
                began = time.perf_counter()
                call()
                taken.append(time.perf_counter() - began)
        return statistics.median(taken)


# ---- losses ----------------------------------------------------------------------------------------------------


def products(inputs: Inputs) -> Callable[[], None]:
    """The four matrix products alone; what they compute is no loss."""
    hidden_TD, head_VD = inputs.hidden_TD.detach(), inputs.head_VD.detach()
    grad_hidden_TD, grad_head_VD = torch.empty_like(hidden_TD), torch.empty_like(head_VD)
    logits_NV = torch.empty(PRODUCT_CHUNK, len(head_VD), dtype=hidden_TD.dtype, device=hidden_TD.device)

    def call() -> None:
        for start in range(0, len(hidden_TD), PRODUCT_CHUNK):
            part = slice(start, start + PRODUCT_CHUNK)
            hidden_ND = hidden_TD[part]
            out_NV = logits_NV[: len(hidden_ND)]
            torch.mm(inputs.teacher_hidden_TD[part], inputs.teacher_head_VD.T, out=out_NV)
            torch.mm(hidden_ND, head_VD.T, out=out_NV)
            torch.mm(out_NV, head_VD, out=grad_hidden_TD[part])
            torch.addmm(grad_head_VD, out_NV.T, hidden_ND, beta=float(start > 0), out=grad_head_VD)

    return call


def ours(**options: str) -> Variant:
    """opd.losses.linear_divergence."""

    def variant(inputs: Inputs, divergence: str) -> Tensor:
        student, teacher = (inputs.hidden_TD, inputs.head_VD), (inputs.teacher_hidden_TD, inputs.teacher_head_VD)
        loss = linear_divergence(*student, *teacher, weight=inputs.weight_T, divergence=divergence, **options)  # type: ignore[arg-type]
        loss.backward()
        return loss.detach()

    return variant


@contextmanager
def compiled_only() -> Iterator[None]:
    """The way of a divergence that has no kernel."""
    with mock.patch.object(fused, "WITH_KERNEL", ()):
        yield


@contextmanager
def without_triton() -> Iterator[None]:
    """The eager walk of a GPU."""
    with mock.patch.object(fused, "has_triton", return_value=False):
        yield


@contextmanager
def as_before() -> Iterator[None]:
    """The eager walk of a CPU, which ran on GPUs too: logits in the head's dtype."""
    with mock.patch.object(gpu, "runs_on_gpu", return_value=False):
        yield


def inside(context: Callable[[], object], variant: Variant) -> Variant:
    """A variant that runs in a context."""

    def call(inputs: Inputs, divergence: str) -> Tensor:
        with context():  # type: ignore[attr-defined]
            return variant(inputs, divergence)

    return call


def peers() -> dict[str, Variant]:
    """The peers that can be imported here."""
    found: dict[str, Variant] = {}
    for name, module in (("TRL", "loss_peer_trl"), ("Liger", "loss_peer_liger")):
        try:
            with _datasets_stand_in():
                found[name] = getattr(importlib.import_module(module), name.lower())
        except Exception as error:  # a peer that is missing or does not load is left out of the table
            print(f"{name} is left out: {type(error).__name__}: {error}", flush=True)
    return found


@contextmanager
def _datasets_stand_in() -> Iterator[None]:
    """TRL imports one class of ``datasets`` for its trainers, which the loss does not need."""
    if importlib.util.find_spec("datasets") is not None:
        yield
        return
    for name in ("transformers", "accelerate"):
        importlib.import_module(name)
    module = types.ModuleType("datasets")
    module.__spec__ = ModuleSpec("datasets", None)
    module.IterableDataset = module.Dataset = type("Dataset", (), {})  # type: ignore[attr-defined]
    sys.modules["datasets"] = module
    try:
        yield
    finally:
        del sys.modules["datasets"]


def exact(inputs: Inputs, divergence: str) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and both gradients in float64, a few positions at a time.

    The slope p · ∂D/∂p is written out here, so that no [T, V] tensor of autograd's is kept.
    """
    hidden_TD, head_VD, teacher_hidden_TD, teacher_head_VD = (
        x.detach().double()
        for x in (inputs.hidden_TD, inputs.head_VD, inputs.teacher_hidden_TD, inputs.teacher_head_VD)
    )
    grad_hidden_TD, grad_head_VD = torch.zeros_like(hidden_TD), torch.zeros_like(head_VD)
    loss = torch.zeros((), dtype=torch.float64, device=hidden_TD.device)
    for start in range(0, len(hidden_TD), REFERENCE_CHUNK):
        part = slice(start, start + REFERENCE_CHUNK)
        weight_N1 = inputs.weight_T[part].double()[:, None]
        log_p = (hidden_TD[part] @ head_VD.T).log_softmax(-1)
        log_q = (teacher_hidden_TD[part] @ teacher_head_VD.T).log_softmax(-1)
        p, q = log_p.exp(), log_q.exp()
        if divergence == "forward_kl":
            value, slope = q * (log_q - log_p), -q
        elif divergence == "reverse_kl":
            value, slope = p * (log_p - log_q), p * (log_p - log_q + 1)
        else:
            log_m = torch.logaddexp(log_p, log_q) - math.log(2)
            value = 0.5 * p * (log_p - log_m) + 0.5 * q * (log_q - log_m)
            slope = 0.5 * p * (log_p - log_m)
        loss += (value * weight_N1).sum()
        grad = (slope - p * slope.sum(-1, keepdim=True)) * weight_N1
        grad_hidden_TD[part] = grad @ head_VD
        grad_head_VD += grad.T @ hidden_TD[part]
    return loss, grad_hidden_TD, grad_head_VD


def relative(got: Tensor, right: Tensor) -> float:
    """Norm of the difference over the norm, by rows, so that no float64 copy of a head is made."""
    off = torch.zeros((), dtype=torch.float64, device=right.device)
    for start in range(0, len(right), 16_384):
        part = slice(start, start + 16_384)
        off += (got[part].double() - right[part]).square().sum()
    return float(off.sqrt() / right.norm())


def measured(
    variant: Variant, inputs: Inputs, divergence: str, right: tuple[Tensor, ...], clock: Clock, repeats: int
) -> Row:
    """Time, memory and errors of one variant."""

    def call() -> None:
        inputs.hidden_TD.grad = inputs.head_VD.grad = None
        variant(inputs, divergence)

    began = time.perf_counter()
    call()
    first = time.perf_counter() - began
    row: Row = {"seconds": clock.seconds(call, repeats), "first_seconds": first}
    inputs.hidden_TD.grad = inputs.head_VD.grad = None
    if clock.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    loss = variant(inputs, divergence)
    gradients = inputs.gradients()
    if clock.on_gpu:
        returned = sum(g.numel() * g.element_size() for g in gradients)
        row["extra_bytes"] = torch.cuda.max_memory_allocated() - before - returned
    row["error_loss"] = abs(float(loss) / float(right[0]) - 1)
    row["error_hidden"], row["error_head"] = (relative(g, r) for g, r in zip(gradients, right[1:], strict=True))
    return row


def loss_table(options: argparse.Namespace, clock: Clock) -> list[Row]:
    """Every variant at every divergence."""
    inputs = make_inputs(options.tokens, options.vocab, options.width, device=options.device, dtype=torch.bfloat16)
    variants: dict[str, Variant] = {
        "opd, float32 logits": ours(),
        "opd, bfloat16 logits": ours(logits="bfloat16"),
        "opd, compiled, float32 logits": inside(compiled_only, ours()),
        "opd, compiled, bfloat16 logits": inside(compiled_only, ours(logits="bfloat16")),
        "opd, without Triton": inside(without_triton, ours()),
        "opd before": inside(as_before, ours()),
        "whole logits, autograd": full_logits,
        **peers(),
    }
    if options.device == "cpu":
        for name in [name for name in variants if "compiled" in name or name == "opd, without Triton"]:
            del variants[name]
    base = clock.seconds(products(inputs), options.repeats)
    flops = 8 * options.tokens * options.vocab * options.width
    print(
        f"\nLoss, {options.tokens} positions, {options.width} hidden units, vocabulary {options.vocab:,}, bfloat16, "
        f"forward and backward. The four products: {base * 1000:.1f} ms, {flops / base / 1e12:.0f} TFLOP/s.\n\n"
        "| divergence | variant | ms | ÷ products | extra MB | error loss | error grad hidden | error grad head |\n"
        "|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    rows: list[Row] = [{"variant": "products", "seconds": base}]
    for divergence in DIVERGENCES:
        right = exact(inputs, divergence)
        for name, variant in variants.items():
            if clock.is_over():
                print("the time is over; the rest is left out", flush=True)
                return rows
            try:
                row = measured(variant, inputs, divergence, right, clock, options.repeats)
            except Exception as error:  # one variant that fails does not end the others
                print(f"| {divergence} | {name} | {type(error).__name__}: {str(error)[:300]} |", flush=True)
                continue
            finally:
                inputs.hidden_TD.grad = inputs.head_VD.grad = None
            row |= {"variant": name, "divergence": divergence, "times_products": row["seconds"] / base}
            rows.append(row)
            memory = f"{row['extra_bytes'] / 1e6:,.0f}" if "extra_bytes" in row else "–"
            print(
                f"| {divergence} | {name} | {row['seconds'] * 1000:.1f} | {row['times_products']:.2f} | {memory} | "
                f"{row['error_loss']:.1e} | {row['error_hidden']:.1e} | {row['error_head']:.1e} |",
                flush=True,
            )
        del right
    return rows


# ---- kernels ---------------------------------------------------------------------------------------------------


def kernel_table(options: argparse.Namespace, clock: Clock) -> list[Row]:
    """Each kernel alone on one chunk of logits, at several sizes of its tiles; for choosing them."""
    rows: list[Row] = []
    if options.device == "cpu" or not fused.has_triton():
        print("\nKernels: there is no GPU with Triton")
        return rows
    from opd.losses import kernels

    print("\n| logits | kernel | warps | height | stages | ms | TB/s |\n|---|---|---|---|---|---|---|", flush=True)
    for dtype in (torch.float32, torch.bfloat16):
        num_rows, _ = gpu.chunk_and_group(options.vocab, dtype, torch.bfloat16, None)
        logits_NV, teacher_NV = (
            torch.randn(num_rows, options.vocab, device=options.device).mul_(2).to(dtype) for _ in range(2)
        )
        grad_NV = torch.empty_like(logits_NV, dtype=torch.bfloat16)
        scale_N = torch.ones(num_rows, device=options.device)
        for kind, num_reads in (("forward_kl", 2), ("reverse_kl", 2), ("jsd", 3)):
            for tile in TILES:
                if clock.is_over():
                    return rows

                call = functools.partial(
                    kernels.divergence, kind, logits_NV, teacher_NV, scale_N, grad_NV, inverse_temperature=1.0, beta=0.5
                )
                settings: dict[str, Any] = dict(zip(("NUM_WARPS", "HEIGHT", "STAGES"), tile, strict=True))
                with mock.patch.multiple(kernels, **settings):
                    seconds = clock.seconds(call, options.repeats)
                moved = num_reads * 2 * logits_NV.nbytes + grad_NV.nbytes
                rows.append({"dtype": str(dtype), "kernel": kind, "tile": str(tile), "seconds": seconds})
                print(
                    f"| {dtype} | {kind} | {' | '.join(map(str, tile))} | {seconds * 1000:.3f} | "
                    f"{moved / seconds / 1e12:.2f} |",
                    flush=True,
                )
    return rows


# ---- rollouts --------------------------------------------------------------------------------------------------


SLOW = ("opd before: float32 weights, autocast", "model.generate_batch, bfloat16")
"""Ways to generate that took half a minute; they write a quarter of the tokens, which flatters them if anything."""


def rollout_table(options: argparse.Namespace, clock: Clock) -> list[Row]:
    """New tokens per second of opd's engine, of ``model.generate`` and of ``model.generate_batch``."""
    from opd.axes.engines.hf import engine_on_gpu
    from opd.engines.hf import HFEngine
    from opd.models.language import LanguageModel
    from opd.types import Sampling

    tokenizer = make_tokenizer(options.vocab)
    model = make_qwen3("0.6b", options)
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(40, 160, (options.rows,), generator=random).tolist()
    contexts = [tuple(torch.randint(1, options.vocab, (n,), generator=random).tolist()) for n in lengths]

    def engine(autocast: torch.dtype | None, *, graphs: bool | None) -> Callable[[int], None]:
        """None: as the engine was before, without a copy of the weights."""
        made: list[HFEngine] = []

        def run(limit: int) -> None:
            if not made:
                language_model = LanguageModel(model, tokenizer, "random", autocast)
                plain = HFEngine(language_model, max_rows=512)
                made.append(plain if graphs is None else engine_on_gpu(language_model, max_rows=512, graphs=graphs)[0])
            limits = [limit] * len(contexts)
            made[0].generate(contexts, limits, sampling=Sampling(), stop_ids=frozenset(), seed=0)

        return run

    @torch.inference_mode()
    def generate(limit: int) -> None:
        width = max(lengths)
        ids = torch.tensor([(0,) * (width - len(c)) + c for c in contexts], device=options.device)
        mask = torch.tensor([(0,) * (width - len(c)) + (1,) * len(c) for c in contexts], device=options.device)
        model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=limit,
            min_new_tokens=limit, pad_token_id=0,
        )  # fmt: skip

    def generate_batch(limit: int) -> None:
        settings = GenerationConfig(
            max_new_tokens=limit, do_sample=True, top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=0
        )
        model.generate_batch([list(c) for c in contexts], generation_config=settings)

    half, full = torch.bfloat16, torch.float32
    runs: list[tuple[str, torch.dtype, Callable[[int], None]]] = [
        ("opd, float32 weights, one copy in bfloat16, graphs", full, engine(half, graphs=True)),
        ("opd, float32 weights, one copy in bfloat16", full, engine(half, graphs=False)),
        ("opd before: float32 weights, autocast", full, engine(half, graphs=None)),
        ("opd, bfloat16 weights, graphs", half, engine(None, graphs=True)),
        ("model.generate, bfloat16", half, generate),
        ("model.generate_batch, bfloat16", half, generate_batch),
    ]
    if options.small:  # it takes minutes on a CPU
        runs.pop()
    print(
        f"\nRollouts, Qwen3 of {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters, {options.rows} "
        f"prompts, {options.new} new tokens each\n\n| | tokens/s |\n|---|---|",
        flush=True,
    )
    rows: list[Row] = []
    for name, dtype, run in runs:
        if clock.is_over():
            print("the time is over; the rest is left out", flush=True)
            break
        try:
            model.to(dtype)
            run(4)
            if clock.on_gpu:
                torch.cuda.synchronize()
            began = time.perf_counter()
            number = options.new // 4 if name in SLOW else options.new
            run(number)
            if clock.on_gpu:
                torch.cuda.synchronize()
            speed = options.rows * number / (time.perf_counter() - began)
        except Exception as error:  # as in the other table
            print(f"| {name} | {type(error).__name__}: {str(error)[:300]} |", flush=True)
            continue
        rows.append({"variant": name, "tokens_per_second": speed})
        print(f"| {name} | {speed:,.0f} |", flush=True)
    return rows


# ---- whole steps and recipes -----------------------------------------------------------------------------------

QWEN3 = {"tiny": (64, 2, 2, 128), "0.6b": (1024, 28, 16, 3072), "1.7b": (2048, 28, 16, 6144)}
"""Hidden units, layers, heads and inner units."""


def make_qwen3(size: str, options: argparse.Namespace, seed: int = 0) -> Qwen3ForCausalLM:
    """A random model of a published shape."""
    hidden, layers, heads, inner = QWEN3["tiny" if options.small else size]
    config = Qwen3Config(
        vocab_size=options.vocab, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=max(heads // 2, 1), head_dim=32 if options.small else 128, intermediate_size=inner,
        max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    with torch.device(options.device):
        return Qwen3ForCausalLM(config).eval()


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, as many as the model has tokens."""
    words = Tokenizer(WordLevel({"<end>": 0, **{f"w{n}": n for n in range(1, size)}}, unk_token="<end>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")


def step_table(options: argparse.Namespace, clock: Clock) -> list[Row]:
    """Whole steps of opd and of TRL's DistillationTrainer, each in a process of its own."""
    ours = [sys.executable, str(HERE / "step.py"), "worker"]
    micro_batch = max(options.rows // 4, 1)
    passes = {"micro_tokens": micro_batch * 512}
    variants: dict[str, tuple[list[str], Row]] = {"opd": (ours, {"optimizer": passes})}
    if options.device == "cuda":
        variants["opd, compiled"] = ours, {"optimizer": passes, "compile": True}
        variants["opd, moments in 8 bits"] = ours, {"optimizer": {**passes, "state": "8bit"}}
    if options.trl_python:
        variants["TRL"] = [options.trl_python, str(HERE / "step_peer_trl.py")], {"steps": STEPS_BEFORE + 1}
    else:
        print("TRL's steps are left out: neither --trl-python nor --wheels is given", flush=True)
    settings: Row = {
        "device": options.device, "dtype": "bfloat16", "batch": options.rows, "micro_batch": micro_batch,
        "limit": options.new, "steps": STEPS_BEFORE + 2, "seed": 0, "packed": True, "compile": False,
    }  # fmt: skip
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        made = [Path(folder) / name for name in ("student", "teacher", "prompts.json")]
        make_step_inputs(made, folder, options)
        print(
            f"\nSteps, reverse KL of {options.rows} rollouts of {options.new} new tokens, bfloat16\n\n"
            "| | rollout s | teacher s | update s | step s | tokens | peak GB | error of the gradient |\n"
            "|---|---|---|---|---|---|---|---|",
            flush=True,
        )
        for name, (command, own) in variants.items():
            if clock.is_over():
                print("the time is over; the rest is left out", flush=True)
                break
            given, limit = settings | {"check": folder} | own, clock.left() + 30
            try:
                steps = steps_of([*command, *map(str, made)], given, timeout=limit, **options.peers)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"| {name} | {type(error).__name__}: {str(error)[-300:]} |", flush=True)
                continue
            row: Row = {
                key: statistics.median(step[key] for step in steps[STEPS_BEFORE:])
                for key in ("rollout", "teacher", "update", "step", "tokens")
            }
            row |= {"variant": name, "peak_gb": steps[-1]["memory"] / 1000, "error": steps[-1]["error"]}
            rows.append(row)
            cells = [f"{row[key]:.2f}" for key in ("rollout", "teacher", "update", "step")]
            print(
                f"| {name} | {' | '.join(cells)} | {row['tokens']:,.0f} | {row['peak_gb']:.1f} | {row['error']:.1e} |",
                flush=True,
            )
    return rows


def make_step_inputs(made: list[Path], folder: str, options: argparse.Namespace) -> None:
    """Models, prompts, given answers and the exact gradient that they have."""
    tokenizer = make_tokenizer(options.vocab)
    models = []
    for seed, (path, size) in enumerate(zip(made, ("0.6b", "1.7b"), strict=False)):
        models.append(make_qwen3(size, options, seed).to(torch.bfloat16))
        models[-1].save_pretrained(path)
        tokenizer.save_pretrained(path)
    prompts = [" ".join(f"w{1 + (n * 7 + k) % 200}" for k in range(40 + n % 120)) for n in range(options.rows)]
    made[2].write_text(json.dumps(prompts))
    random = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, min(options.new, 64) + 1, (options.rows,), generator=random).tolist()
    answers = [torch.randint(1, options.vocab, (length,), generator=random).tolist() for length in lengths]
    pairs = [(tokenizer(prompt).input_ids, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    Path(folder, "answers.json").write_text(json.dumps(pairs))
    student, teacher = (model.float() for model in models)
    for prompt, answer in pairs:
        ids = torch.tensor([prompt + answer], device=options.device)
        with torch.no_grad():
            log_q_TV = teacher(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        log_p_TV = student(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum().backward()
    wanted = {name: p.grad for name, p in student.named_parameters() if any(part in name for part in CHECKED)}
    save_file(
        {name: grad.cpu() for name, grad in wanted.items() if grad is not None}, f"{folder}/reference.safetensors"
    )
    del models, student, teacher, wanted
    if options.device == "cuda":
        torch.cuda.empty_cache()


def recipe_table(options: argparse.Namespace, clock: Clock) -> list[Row]:
    """Two steps of every recipe; what fails is named."""
    import opd
    from opd.config.read import recipe_names

    print("\n| recipe | seconds of two steps |\n|---|---|", flush=True)
    rows: list[Row] = []
    for name in ["hint"] if options.small else recipe_names():
        if clock.is_over():
            print("the time is over; the rest is left out", flush=True)
            break
        began, error = time.perf_counter(), ""
        with tempfile.TemporaryDirectory() as folder:
            short: dict[str, Any] = {
                "optimizer.steps": 2,
                "eval.prompts": None,
                "report": False,
                "log": [],
                "out": f"{folder}/run",
            }
            try:
                opd.train(name, short | {"out": f"{folder}/run"})
            except Exception as failed:
                error = f"{type(failed).__name__}: {failed}"
        rows.append({"variant": name, "seconds": time.perf_counter() - began, "error": error})
        print(f"| {name} | {error or format(rows[-1]['seconds'], '.1f')} |", flush=True)
    return rows


# ---- the program -----------------------------------------------------------------------------------------------


def install(wheels: Path) -> None:
    """Put the peers' wheels where this process finds them, behind everything that is installed."""
    target = tempfile.mkdtemp(prefix="gpu-wheels-")
    files = [str(path) for path in sorted(wheels.glob("*.whl"))]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", target, *files]
    subprocess.run(command, check=True)
    sys.path.append(target)


TABLES = {
    "loss": loss_table,
    "kernels": kernel_table,
    "rollout": rollout_table,
    "step": step_table,
    "recipes": recipe_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tables", nargs="+", choices=tuple(TABLES), default=[name for name in TABLES if name != "kernels"]
    )
    parser.add_argument("--wheels", type=Path, help="a folder of wheels: liger-kernel, trl, accelerate, datasets")
    parser.add_argument("--trl-python", help="interpreter of an environment with trl, for whole steps")
    parser.add_argument("--seconds", type=float, default=200, help="nothing new begins after that")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--small", action="store_true", help="sizes for a CPU; also the default without a GPU")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    options.small |= options.device == "cpu"
    options.tokens, options.width, options.vocab = (64, 32, 500) if options.small else (4096, 2048, 151_936)
    options.rows, options.new = (4, 8) if options.small else (64, 256)
    options.peers = {}
    if options.wheels:
        install(options.wheels)
        options.peers = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        options.trl_python = options.trl_python or sys.executable
    clock = Clock(options.device, options.seconds)
    card = torch.cuda.get_device_name() if clock.on_gpu else "a CPU"
    versions = {"torch": str(torch.__version__)}
    for name in ("triton", "transformers", "trl", "liger_kernel"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    print(f"{card}, {', '.join(f'{name} {version}' for name, version in versions.items())}", flush=True)
    report: dict[str, object] = {"card": card, "versions": versions}
    for name in options.tables:
        report[name] = TABLES[name](options, clock)
        options.out.write_text(json.dumps(report, indent=1))
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
