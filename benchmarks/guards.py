"""False alarms and missed collapses of the guards, at their defaults, evaluated every 5 steps.

    PYTHONPATH=tests python benchmarks/guards.py --folder guards [--seeds 3] [--minutes 60] [--write docs/guards.json]

Each recipe runs as shipped, and each planted collapse, with all guards off, so that what follows is seen. The folder
keeps the metrics of each run, and a run that is there is not made again. The guards then read these metrics as they
would in the run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from opd.config.read import read, recipe_names
from opd.config.run import BaseRun
from support.altered import train_altered
from support.planted import PLANTED
from support.ruined_runs import sabotaged

OFF = {"guards.drop": 1.0, "guards.below_start": 1.0, "guards.patience": 1000, "guards.max_idle": 1000}
MEASURED = {"eval.every": 5, "report": False, "log": [], "checkpoint.every": 1000}
LANGUAGE = {"eval.prompts.limit": 96, "eval.diagnostics": 0, "eval.rollouts_per_prompt": 0}
FIRST = ("gold", "opd", "tml", "gkd", "distillm", "grpo", "hint", "opsd", "oprd", "prefix", "sdpo", "lsm", "d-opsd")
"""Recipes with a dip, and one of each kind, come first."""


@dataclass(frozen=True)
class Job:
    """A run: a recipe, or a planted collapse."""

    name: str
    seed: int
    planted: bool

    @property
    def file(self) -> str:
        """Its metrics in the folder."""
        kind = "planted" if self.planted else "recipe"
        return f"{kind}-{self.name.replace(' ', '-').replace(',', '')}-{self.seed}.json"


def jobs(seeds: int) -> Iterator[Job]:
    """All runs: the planted ones after the first seed of the recipes that come first."""
    recipes = [*FIRST, *(name for name in sorted(recipe_names()) if name not in FIRST)]
    yield from (Job(name, 0, False) for name in recipes[:3])
    yield from (Job(name, 0, True) for name in PLANTED)
    yield from (Job(name, 0, False) for name in recipes[3:])
    yield from (Job(name, seed, False) for seed in range(1, seeds) for name in recipes)


class Enough(Exception):
    """The run has been recorded as far as wanted."""


@dataclass(frozen=True)
class Until:
    """A callback that ends a run at its first evaluation from a step on."""

    last: int

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        if step >= self.last:
            raise Enough


def record(job: Job, until: int) -> dict[str, Any]:
    """Run it with all guards off, to its end or to a step; returns its settings and every line of its metrics."""
    scenario = PLANTED[job.name] if job.planted else None
    recipe = scenario.recipe if scenario else job.name
    with tempfile.TemporaryDirectory(prefix="opd-guards-") as folder:
        out = Path(folder) / "run"
        keys: dict[str, Any] = {**MEASURED, **OFF, "seed": job.seed, "out": str(out)}
        keys |= LANGUAGE if read(recipe, {}).family == "language" else {}
        keys |= scenario.overrides if scenario else {}
        alter = None
        if scenario and scenario.strike:
            alter = partial(sabotaged, strike=scenario.strike, first=scenario.first, last=scenario.last)
        started = time.process_time()
        with suppress(Enough):
            train_altered(alter, recipe, keys, callbacks=[Until(until)])
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rounded = [{k: brief(v) if isinstance(v, Mapping) else v for k, v in line.items()} for line in lines]
    return {
        "recipe": recipe,
        "settings": settings(read(recipe, keys)),
        "cpu_seconds": round(time.process_time() - started),
        "lines": [line for line in rounded if "train" in line or "eval" in line],
    }


def settings(config: BaseRun) -> dict[str, Any]:
    """What the guards are built from."""
    return {"steps": config.optimizer.steps, "warmup": config.optimizer.warmup, "family": config.family}


def brief(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics without times, with six digits."""
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in metrics.items() if not k.endswith("_s")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--until", type=int, default=10**9, help="steps after which a recording ends")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after this")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    for job in jobs(args.seeds):
        path = args.folder / job.file
        if not path.exists() and time.monotonic() < end:
            partial_file = path.with_suffix(".partial")
            partial_file.write_text(json.dumps(record(job, args.until)))
            partial_file.rename(path)
            print(job.file, flush=True)


if __name__ == "__main__":
    main()
