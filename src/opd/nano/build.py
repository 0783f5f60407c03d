"""Train the nano models from nothing: ``python -m opd.nano.build [--only NAME] [--out DIR] [--scale 0.01]``.

Each model is one row of ``MODELS``: shape, training data and number of steps. The same seed gives the same weights on
the same machine. One thread is fastest for models of this size, so two cores build two models at a time.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import cos, pi
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from opd.errors import ConfigError
from opd.nano.tokenizer import END, START, build_tokenizer, train_byte_tokenizer
from opd.nano.traces import (
    WORD,
    Source,
    Trace,
    Turn,
    biased_math_trace,
    copy_trace,
    critic_trace,
    decoded_math_trace,
    math_trace,
    stream,
    tools_trace,
)
from opd.nano.traces_text import hasty_search_trace, hasty_strings_trace, mixed_trace, search_trace, strings_trace

HEAD_DIM = 32
WARMUP = 100
POOL = 16
"""Number of batches that are drawn together and sorted by length."""
NUM_TEXTS = 2000
"""Number of traces for training the byte-level tokenizer."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of ``math-teacher-bpe``, which differs from the other models' tokenizer."""
    texts = (turn.text for trace in islice(stream(decoded_math_trace, 0), NUM_TEXTS) for turn in trace)
    return train_byte_tokenizer(texts)


@dataclass(frozen=True, slots=True)
class Stage:
    """A number of steps on one source of traces."""

    source: Source
    steps: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Shape and training of one model. All stages share one learning-rate schedule."""

    hidden: int
    layers: int
    mlp: int
    stages: tuple[Stage, ...]
    lr: float = 3e-3
    batch: int = 64
    context_weight: float = 0.0
    """Loss weight of questions, reminders and tool results; the assistant's messages have weight 1."""
    tokenizer: Callable[[], PreTrainedTokenizerFast] = build_tokenizer


def _mixed(*sources: Source) -> Source:
    return partial(mixed_trace, sources=sources)


def _hasty(careful: Source, careless: Source) -> Source:
    """A mixture with three careless traces in five."""
    return _mixed(*(careful,) * 2, *(careless,) * 3)


MODELS: dict[str, Plan] = {
    "tools-base": Plan(
        hidden=96,
        layers=3,
        mlp=256,
        lr=4e-3,
        context_weight=0.05,
        stages=(
            Stage(copy_trace, 600),
            Stage(partial(tools_trace, habits=False), 800),
            Stage(tools_trace, 1600),
        ),
    ),
    "math-base": Plan(
        hidden=96,
        layers=3,
        mlp=256,
        lr=4e-3,
        # Long sums rarely come without their solution, so the model is weak alone and confident when privileged.
        stages=(Stage(copy_trace, 500), Stage(partial(math_trace, privileged=0.5, long=0.02), 800)),
    ),
    "math-teacher": Plan(hidden=160, layers=3, mlp=480, stages=(Stage(math_trace, 1000),)),
    "math-biased": Plan(hidden=96, layers=3, mlp=256, lr=4e-3, stages=(Stage(biased_math_trace, 700),)),
    "math-teacher-bpe": Plan(
        hidden=160, layers=3, mlp=480, stages=(Stage(decoded_math_trace, 1400),), tokenizer=byte_tokenizer
    ),
    # Capable of all four tasks and equally careless at each, so that a pipeline's teachers can improve it.
    "base": Plan(
        hidden=96,
        layers=3,
        mlp=256,
        lr=3.5e-3,
        batch=32,
        stages=(
            Stage(copy_trace, 700),
            Stage(
                _mixed(
                    *(math_trace, math_trace),
                    partial(tools_trace, habits=False, reminders=False),
                    *(strings_trace, strings_trace),
                    *(search_trace, search_trace, search_trace),
                ),
                4300,
            ),
            Stage(
                _mixed(
                    _hasty(math_trace, biased_math_trace),
                    partial(tools_trace, reminders=False),
                    _hasty(strings_trace, hasty_strings_trace),
                    _hasty(search_trace, hasty_search_trace),
                ),
                700,
            ),
        ),
    ),
    "critic": Plan(
        hidden=96,
        layers=3,
        mlp=256,
        lr=4e-3,
        context_weight=0.02,
        stages=(Stage(copy_trace, 700), Stage(critic_trace, 1000)),
    ),
}


def build(name: str, out: Path, *, scale: float = 1.0, seed: int = 0, progress: Progress | None = None) -> Path:
    """Train one model and save it with its tokenizer.

    Args:
        name: a key of ``MODELS``.
        out: parent folder of the model's folder.
        scale: factor on the number of steps, for tests.
        seed: seed of weights and traces.
        progress: progress bar to update.

    Returns:
        The model's folder, which ``from_pretrained`` loads.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in MODELS:
        raise ConfigError(f"nano model: unknown name '{name}'. Fix: use one of {', '.join(MODELS)}")
    tokenizer = MODELS[name].tokenizer()
    model = train(MODELS[name], tokenizer, scale=scale, seed=seed, progress=progress, title=name)
    folder = out / name
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def new_model(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 model with random weights from torch's global generator."""
    heads = plan.hidden // HEAD_DIM
    special = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=plan.hidden,
        intermediate_size=plan.mlp,
        num_hidden_layers=plan.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=1024,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        initializer_range=plan.hidden**-0.5,
        **special,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(**special)
    return model


def train(
    plan: Plan,
    tokenizer: PreTrainedTokenizerFast,
    *,
    scale: float,
    seed: int,
    progress: Progress | None = None,
    title: str = "",
    start: Qwen3ForCausalLM | None = None,
) -> Qwen3ForCausalLM:
    """Train with AdamW, warmup and cosine decay, on a new batch of traces per step; in place if ``start`` is given."""
    torch.manual_seed(seed)
    model = (start or new_model(plan, tokenizer)).train()
    batches = _batches(plan, tokenizer, scale, seed)
    steps = sum(_scaled(stage, scale) for stage in plan.stages)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.98))
    task = progress.add_task(title, total=steps, loss=float("nan")) if progress else None
    for step, (ids, weights) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * _schedule(step, steps)
        loss = _loss(model, ids, weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if progress and task is not None:
            progress.update(task, advance=1, loss=loss.item())
    return model.eval()


def _scaled(stage: Stage, scale: float) -> int:
    return max(1, round(stage.steps * scale))


def _schedule(step: int, steps: int) -> float:
    """Learning-rate factor: linear warmup, then cosine decay to 0.02."""
    warmup = min(WARMUP, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + cos(pi * (step - warmup) / max(1, steps - warmup)))


def _loss(model: Any, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy of the next token.

    Args:
        ids: [B, L] int64, padded on the right; causal attention needs no mask for that.
        weights: [B, L] float32, loss weight of the token at each position; 0 on padding.
    """
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    counted = weights[:, 1:] > 0
    logits = model.lm_head(hidden[counted])
    losses = F.cross_entropy(logits, ids[:, 1:][counted], reduction="none")
    weight = weights[:, 1:][counted]
    return (losses * weight).sum() / weight.sum()


def _batches(
    plan: Plan, tokenizer: PreTrainedTokenizerFast, scale: float, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """New batches, each of traces of similar length, which halves the time through less padding."""
    for number, stage in enumerate(plan.stages):
        traces = stream(stage.source, seed * 1000 + number)
        rng = random.Random(seed * 1000 + number)
        left = _scaled(stage, scale)
        while left > 0:
            pool = sorted(islice(traces, POOL * plan.batch), key=_words)
            starts = rng.sample(range(0, len(pool), plan.batch), min(left, POOL))
            for start in starts:
                yield encode(tokenizer, pool[start : start + plan.batch], plan.context_weight)
            left -= len(starts)


def _words(trace: Trace) -> int:
    return sum(len(turn.text) for turn in trace)


def encode(tokenizer: PreTrainedTokenizerFast, traces: Sequence[Trace], context_weight: float) -> tuple[Tensor, Tensor]:
    """Token ids and loss weights, each [B, L], in the format of the chat template.

    An assistant's turn has weight 1 from its first word to its end mark. The opening ``<|im_start|>`` and the role have
    weight 0, because they are part of the model's input.
    """
    opening = _opening(tokenizer)
    flat = [turn for trace in traces for turn in trace]
    encoded = iter(tokenizer.backend_tokenizer.encode_batch([f"{START}{t.role}{opening}{t.text}{END}" for t in flat]))
    rows = []
    for trace in traces:
        ids: list[int] = []
        weights: list[float] = []
        for turn in trace:
            part = next(encoded)
            ids += part.ids
            weights += _turn_weights(turn, part.offsets, len(f"{START}{turn.role}{opening}"), context_weight)
        rows.append((ids, weights))
    width = max(len(ids) for ids, _ in rows)
    pad = tokenizer.pad_token_id
    return (
        torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows]),
        torch.tensor([weights + [0.0] * (width - len(weights)) for _, weights in rows]),
    )


def _opening(tokenizer: PreTrainedTokenizerFast) -> str:
    """The text of the chat template between a role and its message."""
    marker = "\0"
    rendered: str = tokenizer.apply_chat_template([{"role": marker, "content": marker}], tokenize=False)
    return rendered.split(marker)[1]


def _turn_weights(turn: Turn, offsets: Sequence[tuple[int, int]], given: int, context_weight: float) -> list[float]:
    """Loss weights of a turn's tokens at ``offsets``; tokens in the first ``given`` characters have weight 0."""
    if turn.role != "assistant":
        return [context_weight if start >= given else 0.0 for start, _ in offsets]
    skipped = [word.span() for i, word in enumerate(WORD.finditer(turn.text)) if i in turn.skip]
    covered = {given + i for start, stop in skipped for i in range(start, stop)}
    return [
        float(turn.trained and start >= given and covered.isdisjoint(range(start, stop))) for start, stop in offsets
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the nano models from nothing.")
    parser.add_argument("--only", choices=list(MODELS), action="append", help="build only this model; may be repeated")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "models")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workers", type=int, default=2, help="number of models to build at the same time, one core each"
    )
    arguments = parser.parse_args()
    names = arguments.only or list(MODELS)
    settings = (arguments.out, arguments.scale, arguments.seed)
    started = time.monotonic()
    if arguments.workers == 1 or len(names) == 1:
        columns = ("{task.description:16}", "loss {task.fields[loss]:.3f}", "{task.completed}/{task.total}")
        with Progress(TextColumn(columns[0]), BarColumn(), *map(TextColumn, columns[1:]), TimeRemainingColumn()) as bar:
            for name in names:
                bar.console.print(_timed(name, *settings, progress=bar))
    else:
        print(f"building {', '.join(names)}, {arguments.workers} at a time")
        with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
            for done in as_completed([pool.submit(_timed, name, *settings) for name in names]):
                print(done.result(), flush=True)
    print(f"total {time.monotonic() - started:.0f} s")


def _timed(name: str, out: Path, scale: float, seed: int, progress: Progress | None = None) -> str:
    """Build one model and return a line with its folder and time."""
    torch.set_num_threads(1)
    started = time.monotonic()
    folder = build(name, out, scale=scale, seed=seed, progress=progress)
    return f"{name}: {folder} in {time.monotonic() - started:.0f} s"


if __name__ == "__main__":
    main()
