"""What the recipes do on the nano suite, over seeds: the tables in the README and in benchmarks/README.md.

    python benchmarks/recipes.py hint        # rules and the nano critic, 3 seeds each, and the critic's precision
    python benchmarks/recipes.py collapse    # the live teacher without an anchor
    python benchmarks/recipes.py opd         # a stronger teacher, beside supervised training on its answers
    python benchmarks/recipes.py opsd        # the answer in the teacher's context
    python benchmarks/recipes.py all

Seeds change the order of prompts and every draw; the models are the bundled ones. Figures are greedy accuracy on
the test split, and the mean of four sampled answers (avg@4).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import opd
from opd.axes.base import Objects
from opd.axes.views.hint import HintView
from opd.config.read import read
from opd.config.run import RunConfig
from opd.language.load import load_run
from opd.teachers.hints import ModelAuthor

CRITIC = {"teacher.view.author": {"type": "model", "model": "nano/critic"}}
UPDATES = {"hint": 100, "opd": 200, "opsd": 100}
"""More than the recipes ship with: what they end at, and whether they stay there."""
UNGUARDED = {"guards.drop": 1.0, "guards.below_start": 1.0}
"""For baselines that fall before they rise: a guard would stop them."""


def run(recipe: str, seed: int, folder: Path, overrides: dict[str, Any]) -> opd.Result:
    """One run, in a folder of its own."""
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    fixed: dict[str, Any] = {"seed": seed, "out": str(out), "eval.rollouts_per_prompt": 4, "eval.every": 50, "log": []}
    fixed["optimizer.steps"] = UPDATES[recipe]
    return opd.train(recipe, {**fixed, **overrides})


def spread(values: list[float]) -> str:
    """Median and range, in percent."""
    return f"{statistics.median(values):.1%} ({min(values):.1%}–{max(values):.1%})"


def table(title: str, rows: dict[str, list[opd.Result]], metrics: list[str]) -> None:
    """A line per variant: each metric before and after."""
    print(f"\n### {title}\n")
    print("| | " + " | ".join(f"{m} before | after" for m in metrics) + " | steps | seconds | stopped by |")
    print("|---|" + "---|" * (2 * len(metrics) + 3))
    for name, results in rows.items():
        cells = []
        for metric in metrics:
            # A model that no longer calls anything has no share of invalid calls.
            after = [r.after[metric] for r in results if metric in r.after]
            silent = f", {len(results) - len(after)} without a call" if len(after) < len(results) else ""
            cells += [f"{results[0].before[metric]:.1%}", (spread(after) if after else "–") + silent]
        steps = ", ".join(str(r.steps) for r in results)
        seconds = f"{statistics.median(r.seconds for r in results):.0f}"
        stops = ", ".join(r.stopped_by or "–" for r in results)
        print(f"| {name} | {' | '.join(cells)} | {steps} | {seconds} | {stops} |", flush=True)


def hint(seeds: int, folder: Path) -> None:
    variants: dict[str, dict[str, Any]] = {"rules": {}, "nano critic": CRITIC}
    rows = {name: [run("hint", s, folder, more) for s in range(seeds)] for name, more in variants.items()}
    table("`hint` on `tools`", rows, ["invalid_call_rate", "accuracy", "avg@4"])
    critic_precision()


def critic_precision() -> None:
    """How often the critic is right about real rollouts of the base model, against the environment's events."""
    config = read("hint", CRITIC)
    assert isinstance(config, RunConfig)
    run = load_run(config, Objects())
    view = run.view()
    assert isinstance(view, HintView)
    assert isinstance(view.author, ModelAuthor)
    rollouts = run.sampler(held_out=True).rollout(run.held_out, seed=1)
    events = [(i, e) for i, r in enumerate(rollouts) for e in r.events if "tools" in e.detail]
    faulty = {(i, e.span): e.detail["tools"] for i, e in events}
    hints = [(i, h) for i, said in enumerate(view.author.hints(rollouts)) for h in said]
    right = [(i, h) for i, h in hints if (i, h.span) in faulty]
    exact = [(i, h) for i, h in right if _words(faulty[i, h.span]) <= _words(h.text)]
    found = len({(i, h.span) for i, h in right}) / len(faulty)
    print(f"\nThe critic on {len(rollouts)} sampled rollouts of the base model, answers: {dict(view.author.counts)}")
    print(f"- precision: {len(right) / len(hints):.1%} of {len(hints)} hints are about a faulty turn")
    print(f"- {len(exact) / len(hints):.1%} are, and list that prompt's tools right")
    print(f"- recall: {found:.1%} of {len(faulty)} faulty turns have a hint")


def _words(text: str) -> set[str]:
    return set(text.replace(",", " ").replace(".", " ").replace(":", " ").split())


def collapse(seeds: int, folder: Path) -> None:
    live = {"teacher.weights": "live", "loss.anchor": 0.0}
    variants: dict[str, dict[str, Any]] = {
        "live, no anchor": live,
        "the same, guards off": {**live, **UNGUARDED},
        "frozen, no anchor": {"loss.anchor": 0.0},
    }
    often = {"eval.every": 10, "eval.rollouts_per_prompt": 0}
    rows = {name: [run("hint", s, folder, often | more) for s in range(seeds)] for name, more in variants.items()}
    table("A live teacher collapses", rows, ["invalid_call_rate", "accuracy"])
    for result in rows["live, no anchor"]:
        for event in result.events:
            print(f"- step {event['step']}: {event['text']}")


def distil(seeds: int, folder: Path) -> None:
    teacher = opd.evaluate("nano/math-teacher", "math")["accuracy"]
    off_policy = {"rollout.source": "teacher", **UNGUARDED}
    variants: dict[str, dict[str, Any]] = {
        "opd": {},
        "supervised on the teacher's answers": {**off_policy, "loss.signal": "sft"},
    }
    rows = {name: [run("opd", s, folder, more) for s in range(seeds)] for name, more in variants.items()}
    table("`opd` on `math`", rows, ["accuracy", "avg@4"])
    print(f"\nThe teacher's accuracy is {teacher:.1%}.")
    for name, results in rows.items():
        closed = [(r.after["accuracy"] - r.before["accuracy"]) / (teacher - r.before["accuracy"]) for r in results]
        print(f"- {name}: {spread(closed)} of the gap closed")


def opsd(seeds: int, folder: Path) -> None:
    rows = {"opsd": [run("opsd", s, folder, {}) for s in range(seeds)]}
    table("`opsd` on `math`", rows, ["accuracy", "avg@4"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = {"hint": hint, "collapse": collapse, "opd": distil, "opsd": opsd}
    parser.add_argument("what", choices=[*jobs, "all"])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="opd-recipes-") as folder:
        for name, job in jobs.items():
            if args.what in (name, "all"):
                job(args.seeds, Path(folder))


if __name__ == "__main__":
    main()
