"""Rollout speed: opd's engine against ``model.generate`` on the same prompts, one table.

    python benchmarks/rollout.py [--model nano/math-base] [--batch 64] [--prompts 512] [--repeats 5]

Both sample at temperature 1 with the same stop token and length limit. ``generate`` decodes a batch until
its slowest row has finished; opd's engine lets waiting prompts in as rows finish. Answers differ by chance,
so what is compared is generated tokens per second; repeats alternate, and medians are quoted.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from opd.data.tasks import get_task
from opd.engines.hf import HFEngine
from opd.models.chat import Chat
from opd.models.language import LanguageModel, device_named, pad, stop_ids
from opd.models.loading import load
from opd.types import Sampling


def ours(model: LanguageModel, contexts: list[tuple[int, ...]], limit: int, batch: int, seed: int) -> list[int]:
    """Lengths of the answers of opd's engine."""
    engine = HFEngine(model, max_rows=batch)
    return [
        len(g.ids)
        for g in engine.generate(
            contexts, [limit] * len(contexts), sampling=Sampling(), stop_ids=stop_ids(model), seed=seed
        )
    ]


@torch.inference_mode()
def theirs(model: LanguageModel, contexts: list[tuple[int, ...]], limit: int, batch: int, seed: int) -> list[int]:
    """Lengths of the answers of ``model.generate``, prompts sorted by length so that it pads little."""
    torch.manual_seed(seed)
    stops = stop_ids(model)
    lengths = []
    ordered = sorted(contexts, key=len)
    for start in range(0, len(ordered), batch):
        ids, mask = pad(ordered[start : start + batch], left=True, device=model.device)
        out = model.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=limit,
            eos_token_id=sorted(stops),
            pad_token_id=model.tokenizer.pad_token_id or 0,
        )
        for row in out[:, ids.shape[1] :].tolist():
            ends = [i for i, token in enumerate(row) if token in stops]
            lengths.append(ends[0] + 1 if ends else len(row))
    return lengths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano/math-base")
    parser.add_argument("--task", default="math")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(args.model, key="--model", device=device_named("auto"))
    chat = Chat(model.tokenizer)
    contexts = [chat.prompt_ids(p) for p in get_task(args.task).prompts("train")[: args.prompts]]
    speeds: dict[str, list[float]] = {"model.generate": [], "opd": []}
    spread: list[int] = []
    for seed in range(args.repeats + 1):
        for name, run in (("model.generate", theirs), ("opd", ours)):
            started = time.perf_counter()
            lengths = run(model, contexts, args.limit, args.batch, seed)
            if seed:  # the first round warms up
                speeds[name].append(sum(lengths) / (time.perf_counter() - started))
                spread += lengths
    base = statistics.median(speeds["model.generate"])
    quantiles = statistics.quantiles(spread, n=20)
    print(
        f"{args.model}, {args.prompts} prompts, batch {args.batch}, one thread; answer lengths: "
        f"5 % {quantiles[0]:.0f}, median {statistics.median(spread):.0f}, 95 % {quantiles[-1]:.0f}, "
        f"longest {max(spread)}\n"
    )
    print("| | tokens/s, median | range | ratio |\n|---|---|---|---|")
    for name, values in speeds.items():
        median = statistics.median(values)
        print(f"| {name} | {median:,.0f} | {min(values):,.0f}–{max(values):,.0f} | {median / base:.2f} |")


if __name__ == "__main__":
    main()
