"""Every recipe on the nano suite, and what its source reports: the tables of docs/methods.md.

    python benchmarks/methods.py [--seeds 3] [--only tml --only lsm] [--write docs/methods.md]

Figures are greedy accuracy on the test split and the mean of four sampled answers (avg@4), medians over seeds with
their range; tokens are those rolled out in training. Runs are as shipped: each recipe's own settings.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

import opd
from opd.config import MethodConfig, RunConfig
from opd.methods import AXES, place
from opd.run_file import read, recipe_names

SUPERVISED = {"rollout.policy": "teacher", "loss.signal": "tokens"}
BASELINES: dict[str, tuple[str, dict[str, Any]]] = {"supervised on the teacher's answers": ("opd", SUPERVISED)}
"""Not recipes, but what to compare them with: a recipe and its overrides."""
GUARDS_OFF = {"guards.drop": 1.0, "guards.below_start": 1.0}
"""For the baselines, which may fall before they rise."""


def measure(recipe: str, overrides: dict[str, Any], seeds: int, folder: Path) -> list[opd.Result]:
    """One run a seed, each in a folder of its own."""
    fixed: dict[str, Any] = {"eval.samples": 4, "eval.every": 50, "log": []}
    runs = ({**fixed, **overrides, "seed": s, "out": f"{tempfile.mkdtemp(dir=folder)}/run"} for s in range(seeds))
    return [opd.train(recipe, run) for run in runs]


def spread(values: list[float]) -> str:
    """Median and range, in percent."""
    middle = f"{statistics.median(values):.1%}"
    return f"{middle} ({min(values):.1%}–{max(values):.1%})" if len(values) > 1 else middle


def row(name: str, results: list[opd.Result]) -> list[str]:
    """One line of the table of figures."""
    before = results[0].before
    stops = [r.stopped_by for r in results if r.stopped_by]
    return [
        name,
        f"{before['accuracy']:.1%}",
        spread([r.after["accuracy"] for r in results]),
        f"{before['avg@4']:.1%}",
        spread([r.after["avg@4"] for r in results]),
        f"{statistics.median(r.steps for r in results):.0f}",
        f"{statistics.median(r.tokens for r in results) / 1000:.0f} k",
        f"{statistics.median(r.seconds for r in results):.0f}",
        ", ".join(stops) or "–",
    ]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def method_of(name: str) -> tuple[RunConfig, MethodConfig]:
    config = read(name)
    assert config.method is not None
    return config, config.method


def report(figures: dict[str, list[list[str]]], names: list[str], seeds: int, minutes: float) -> str:
    """The whole page."""
    header = ["recipe", "greedy before", "after", "avg@4 before", "after", "updates", "tokens", "seconds", "stopped by"]
    methods = {name: method_of(name) for name in names}
    axes = [[f"`{n}`", *place(config)] for n, (config, _) in methods.items()]
    sources = [[f"`{n}`", method.title, method.source, method.reported] for n, (_, method) in methods.items()]
    parts = [
        "# The methods, measured",
        f"Written by `python benchmarks/methods.py --seeds {seeds}` in {minutes:.0f} minutes; do not edit. Two shared "
        "CPU cores, the bundled models, each recipe as shipped. Where a figure has a range, it is over seeds.",
        "## The map",
        markdown(["recipe", *AXES], axes),
    ]
    for task, rows in figures.items():
        parts += [f"## On `{task}`", markdown(header, rows)]
    parts += ["## What the sources report", markdown(["recipe", "what", "source", "reported"], sources)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=recipe_names())
    parser.add_argument("--write", type=Path, help="also write the page here")
    args = parser.parse_args()
    names = args.only or recipe_names()
    console, started = Console(stderr=True), time.monotonic()
    figures: dict[str, list[list[str]]] = {}
    with tempfile.TemporaryDirectory(prefix="opd-methods-") as folder:
        for name, (recipe, overrides) in {
            **{n: (n, {}) for n in names},
            **(BASELINES if not args.only else {}),
        }.items():
            guards = GUARDS_OFF if name in BASELINES else {}
            results = measure(recipe, {**overrides, **guards}, args.seeds, Path(folder))
            figures.setdefault(read(recipe).prompts.task or "", []).append(row(name, results))
            console.print(" | ".join(figures[read(recipe).prompts.task or ""][-1]), highlight=False)
    page = report(figures, names, args.seeds, (time.monotonic() - started) / 60)
    print(page)
    if args.write:
        args.write.write_text(page)


if __name__ == "__main__":
    main()
