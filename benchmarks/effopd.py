"""Does extrapolating along the update save anything (EffOPD, arXiv 2605.11739)?

    python benchmarks/effopd.py [--seeds 3] [--steps 60] [--only opd] [--lr 0.1]

The recipes ``opd`` and ``tml`` with and without ``experimental.extrapolate={}``: updates, rolled-out tokens and seconds
until the greedy accuracy on 128 prompts of the test split first reaches the best that both runs of a seed reach. Tokens
and seconds include what choosing between candidates costs (50 training prompts each time), but not the looks of this
benchmark, every 5 steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import opd
from opd.config.read import read
from opd.loop import Loop
from opd.types import Metrics
from support.altered import train_altered

EVERY = 5
FIXED = {
    "eval.prompts.limit": 128,
    "eval.every": EVERY,
    "eval.diagnostics": 0,
    "guards.drop": 1.0,
    "guards.below_start": 1.0,
    "log": [],
}
VARIANTS: dict[str, dict[str, Any]] = {"without": {}, "with": {"experimental.extrapolate": {}}}


class Look(NamedTuple):
    """Where a run stood at an evaluation."""

    step: int
    tokens: int
    seconds: float
    accuracy: float


@dataclass
class Curve:
    """What each evaluation of a run had cost until then."""

    looks: list[Look] = field(default_factory=list)

    def alter(self, loop: Loop) -> Loop:
        """The loop, whose evaluations are noted."""
        state, evaluate = loop.state, loop.evaluate
        assert evaluate

        def noted() -> Metrics:
            metrics = evaluate()
            self.looks.append(Look(state.step, state.tokens, state.seconds, metrics["accuracy"]))
            return metrics

        return dataclasses.replace(loop, evaluate=noted)

    def best(self) -> float:
        return max(look.accuracy for look in self.looks)

    def reaches(self, accuracy: float) -> Look:
        return next(look for look in self.looks if look.accuracy >= accuracy)


def run(recipe: str, seed: int, overrides: Mapping[str, Any]) -> tuple[Curve, opd.Result]:
    """One run, looked at often."""
    curve = Curve()
    with tempfile.TemporaryDirectory(prefix="opd-effopd-") as folder:
        keys = {**FIXED, **overrides, "seed": seed, "out": f"{folder}/run"}
        return curve, train_altered(curve.alter, recipe, keys)


def compare(recipe: str, seed: int, steps: int, factor: float) -> dict[str, Look]:
    """A line for each variant of a seed; what was kept, and each one's cost of the best that both reach."""
    fixed = {"optimizer.steps": steps, "optimizer.lr": factor * read(recipe).optimizer.lr}
    runs = {name: run(recipe, seed, {**fixed, **more}) for name, more in VARIANTS.items()}
    target = min(curve.best() for curve, _ in runs.values())
    reached = {name: curve.reaches(target) for name, (curve, _) in runs.items()}
    for name, (curve, result) in runs.items():
        there, end = reached[name], curve.looks[-1]
        kept = [
            f"{e['step']}: {e['text'].split(';')[0].removeprefix('kept ')}"
            for e in result.events
            if e["kind"] == "extrapolation" and "Δ" in e["text"]
        ]
        cells = [recipe, seed, name, f"{target:.1%}", there.step, f"{there.tokens:,}", f"{there.seconds:.0f}"]
        cells += [f"{end.accuracy:.1%}", f"{end.tokens:,}", f"{end.seconds:.0f}", "; ".join(kept) or "–"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return reached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", action="append", choices=["opd", "tml"])
    parser.add_argument("--lr", type=float, default=1.0, help="factor on the recipe's learning rate")
    args = parser.parse_args()
    print(
        "| recipe | seed | extrapolation | accuracy | updates | tokens | s | at the end | tokens | s | kept at step |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    ratios = []
    for recipe in args.only or ["opd", "tml"]:
        pairs = [compare(recipe, seed, args.steps, args.lr) for seed in range(args.seeds)]
        for figure in ("step", "tokens", "seconds"):
            shares = [getattr(pair["with"], figure) / max(getattr(pair["without"], figure), 1e-9) for pair in pairs]
            spread = f"{statistics.median(shares):.2f} ({min(shares):.2f}–{max(shares):.2f})"
            ratios.append(f"- `{recipe}`, {figure}, with ÷ without: {spread}")
    print("\n" + "\n".join(ratios))


if __name__ == "__main__":
    main()
