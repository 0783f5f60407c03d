"""Hints about one rollout: a teacher's pass over all of them, beside one plain read of the rollout. On a CPU.

    python benchmarks/hints.py [--prompt 512 --turns 16 --call 32 --result 64 --hint 24]

A random Qwen3 model scores a rollout of several turns: a call that the student wrote, and a tool's result. 1, 2, 4 and
8 of its turns have a hint right above them. ``shared`` reads their common history once, ``separate`` reads each hint's
context from the start, as every model is read whose attention does not allow more. Float32, one thread, seconds of
CPU time, medians of alternating repeats, divided by one plain read of the same rollout.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from opd.models import forward
from opd.models.bundled import resolve
from opd.models.language import LanguageModel
from opd.teachers.local import LocalTeacher
from opd.types import Prompt, Rollout, Segment, Span

VOCAB = 291
HINTS = (1, 2, 4, 8)


def make_model(hidden: int, layers: int) -> LanguageModel:
    """A random model."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        head_dim=64,
        max_position_embeddings=8192,
    )
    tokenizer = AutoTokenizer.from_pretrained(resolve("nano/math-base"))
    return LanguageModel(Qwen3ForCausalLM(config).eval(), tokenizer, "random")


def make_rollout(options: argparse.Namespace) -> Rollout:
    """Turns with results between them, all of random tokens."""
    generator = torch.Generator().manual_seed(0)
    length = options.turns * (options.call + options.result) - options.result
    ids = torch.randint(4, VOCAB, (options.prompt + length,), generator=generator).tolist()
    starts = range(0, length, options.call + options.result)
    mask = tuple(any(start <= p < start + options.call for start in starts) for p in range(length))
    turns = tuple(Span(start, start + options.call) for start in starts)
    prompt, completion = tuple(ids[: options.prompt]), tuple(ids[options.prompt :])
    return Rollout(Prompt("p", text="x"), prompt, completion, mask, (0.0,) * length, turns, "stop")


def hinted(rollout: Rollout, number: int, hint: int) -> list[Segment]:
    """Turns at equal distances, the last one among them, each with a hint above it."""
    generator = torch.Generator().manual_seed(1)
    apart = max(len(rollout.turns) // number, 1)
    segments = []
    for turn in rollout.turns[apart - 1 :: apart][:number]:
        written = tuple(torch.randint(4, VOCAB, (hint,), generator=generator).tolist())
        context = rollout.prompt_ids + rollout.completion_ids[: turn.start] + written
        segments.append(Segment(0, context, turn))
    return segments


def seconds(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median of alternating calls."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 1):
        for name, call in calls.items():
            began = time.process_time()
            call()
            if round_:
                taken[name].append(time.process_time() - began)
    return {name: statistics.median(times) for name, times in taken.items()}


def separate(teacher: LocalTeacher, rollout: Rollout, segments: list[Segment]) -> None:
    """Each segment's context from the start."""
    with mock.patch.object(forward, "shares", return_value=False):
        teacher.score([rollout], segments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("prompt", 512), ("turns", 16), ("call", 32), ("result", 64), ("hint", 24), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--sizes", nargs="+", default=["256x6", "512x12"], help="hidden units x layers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rollout = make_rollout(options)
    print(f"one plain read: {len(rollout.prompt_ids) + len(rollout.completion_ids):,} tokens\n")
    print("| model | hints | shared | separate |\n|---|---|---|---|")
    for size in options.sizes:
        model = make_model(*map(int, size.split("x")))
        teacher = LocalTeacher(model)
        whole = [Segment(0, rollout.prompt_ids, Span(0, len(rollout.completion_ids)))]

        for number in HINTS:
            segments = hinted(rollout, number, options.hint)
            calls: dict[str, Callable[[], object]] = {
                "plain": partial(teacher.score, [rollout], whole),
                "shared": partial(teacher.score, [rollout], segments),
                "separate": partial(separate, teacher, rollout, segments),
            }
            found = seconds(calls, options.repeats)
            ratios = [found[name] / found["plain"] for name in ("shared", "separate")]
            print(f"| {size} | {number} | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
