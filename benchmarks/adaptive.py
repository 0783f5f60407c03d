"""Do prompts and tokens chosen by what they still teach save updates?

    python benchmarks/adaptive.py [--seeds 3] [--steps N] [--only opd]

The recipes ``opd`` and ``grpo`` with each prompt once per epoch and with ``experimental.curriculum``, and ``opd``
with half of the tokens (``experimental.hardest_tokens``): updates, rolled-out tokens and seconds until the greedy
accuracy on 128 prompts of the test split first reaches the best that all variants of a seed reach, in steps of 5 (0
is the start). Training has 256 prompts, so that each comes back often enough to be known; ``opd`` makes 40 updates
and ``grpo``, which is slower, 80. Seconds leave out the looks of this benchmark. With 128 prompts the standard error
of one accuracy is up to 4.4 points, so that a variant is better only where the ranges over seeds say so."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from effopd import Curve, Look, run

PROMPTS = 256
STEPS = {"opd": 40, "grpo": 80}
BY_SUCCESS: dict[str, Any] = {"experimental.curriculum": {"success": 1.0, "staleness": 0.1, "uniform": 0.1}}
BY_DIVERGENCE: dict[str, Any] = {"experimental.curriculum": {"divergence": 1.0, "staleness": 0.1, "uniform": 0.1}}
UNIFORM = "uniform"
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "opd": {
        UNIFORM: {},
        "prompts by p(1−p)": BY_SUCCESS,
        "prompts by divergence": BY_DIVERGENCE,
        "half of the tokens, by divergence": {"experimental.hardest_tokens": {"by": "divergence", "share": 0.5}},
        "half of the tokens, by entropy": {"experimental.hardest_tokens": {"by": "entropy", "share": 0.5}},
    },
    "grpo": {UNIFORM: {}, "prompts by p(1−p)": BY_SUCCESS},
}


def compare(recipe: str, seed: int, steps: int) -> tuple[dict[str, Look], dict[str, Look]]:
    """A line for each variant of a seed; its cost of the best that all of them reach, and where it ended."""
    keys = {"optimizer.steps": steps, "prompts.limit": PROMPTS}
    curves: dict[str, Curve] = {name: run(recipe, seed, {**keys, **more})[0] for name, more in VARIANTS[recipe].items()}
    target = min(curve.best() for curve in curves.values())
    reached = {name: curve.reaches(target) for name, curve in curves.items()}
    for name, curve in curves.items():
        there, end = reached[name], curve.looks[-1]
        cells = [recipe, seed, name, f"{target:.1%}", there.step, f"{there.tokens:,}", f"{there.seconds:.0f}"]
        cells += [f"{curve.best():.1%}", f"{end.accuracy:.1%}", f"{end.seconds:.0f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return reached, {name: curve.looks[-1] for name, curve in curves.items()}


def spread(values: list[float], form: str) -> str:
    """Median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def summary(recipe: str, runs: list[tuple[dict[str, Look], dict[str, Look]]]) -> list[str]:
    """A row for each variant: medians over seeds, and updates beside uniform ones of the same seed."""
    rows = []
    for name in VARIANTS[recipe]:
        updates = [float(reached[name].step) for reached, _ in runs]
        ratios = [reached[name].step / max(reached[UNIFORM].step, 1) for reached, _ in runs]
        seconds = [reached[name].seconds for reached, _ in runs]
        ends = [end[name].accuracy for _, end in runs]
        cells = [recipe, name, spread(updates, ".0f"), spread(ratios, ".2f"), spread(seconds, ".0f")]
        rows.append(f"| {' | '.join([*cells, spread(ends, '.1%')])} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="for all recipes; by default 40 for opd and 80 for grpo")
    parser.add_argument("--only", action="append", choices=list(VARIANTS))
    args = parser.parse_args()
    print("| recipe | seed | drawn | accuracy | updates | tokens | s | best | at the end | s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    recipes = args.only or list(VARIANTS)
    runs = {r: [compare(r, seed, args.steps or STEPS[r]) for seed in range(args.seeds)] for r in recipes}
    print("\n| recipe | drawn | updates, median (range) | ÷ uniform | s | accuracy at the end |")
    print("|---|---|---|---|---|---|")
    print("\n".join(row for recipe in recipes for row in summary(recipe, runs[recipe])))


if __name__ == "__main__":
    main()
