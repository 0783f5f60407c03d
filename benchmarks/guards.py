"""False alarms and missed collapses of the guards, at their defaults, evaluated every 5 steps.

    PYTHONPATH=tests python benchmarks/guards.py --folder guards [--seeds 3] [--until 40] [--minutes 60] [--write FILE]

Each recipe runs as shipped, and each planted collapse, with all guards off, so that what follows is seen. The folder
keeps the metrics of each run, and a run that is there is not made again. The guards then read these metrics as they
would in the run: by evaluations, by rollouts alone, and by rollouts without rewards. ``--write`` adds what they read to
the file that the tests read.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from opd.config.read import read, recipe_names
from opd.config.run import BaseRun
from opd.types import Term
from support.altered import train_altered
from support.guard_replay import Seen, by_evaluations, by_rollouts, compact
from support.planted import PLANTED
from support.ruined_runs import sabotaged

TERMS = [Term("distill", "distill", None, None, None)]  # type: ignore[arg-type]
GUARDS: tuple[Callable[[Mapping[str, Any]], Seen], ...] = (
    by_evaluations,
    partial(by_rollouts, terms=TERMS),
    partial(by_rollouts, terms=TERMS, rewarded=False),
)

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
    rollout = config.rollout.model_dump()
    return {
        "steps": config.optimizer.steps,
        "warmup": config.optimizer.warmup,
        "prompts": rollout["prompts_per_step"],
    }


def brief(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics without times, with six digits."""
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in metrics.items() if not k.endswith("_s")}


def verdicts(folder: Path) -> dict[str, dict[str, Any]]:
    """Print what the guards make of every recorded run; returns what they read of it."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        recorded = found[path.stem] = compact(json.loads(path.read_text()))
        evaluated, rolled = by_evaluations(recorded), by_rollouts(recorded, TERMS)
        unrewarded = by_rollouts(recorded, TERMS, rewarded=False)
        last = recorded["rollouts"][-1][0]
        seen = f"evaluations {evaluated.stopped or '–'} (fell {evaluated.fell or '–'}, kept {evaluated.kept})"
        others = f"rollouts {rolled.stopped or '–'}, without rewards {unrewarded.stopped or '–'}"
        print(f"{path.stem}: {last} steps; {seen}; {others}")
    recipes = [one for name, one in found.items() if name.startswith("recipe-")]
    planted = [one for name, one in found.items() if name.startswith("planted-")]
    false = [sum(bool(stop(one).stopped) for one in recipes) for stop in GUARDS]
    caught = [sum(bool(stop(one).stopped) for one in planted) for stop in GUARDS]
    soon = sum(stopped - fell <= 5 for fell, stopped in map(fall, planted) if fell and stopped)
    ways = ("by evaluations", "by rollouts", "by rollouts without rewards")
    print(f"{len(recipes)} runs of recipes, false stops:", *map("{} {};".format, false, ways))
    print(f"{len(planted)} planted collapses, stopped:", *map("{} {};".format, caught, ways))
    print(f"{soon} of {caught[0]} at the next evaluation after the one that first shows it")
    return found


def fall(recorded: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The evaluation that first shows a collapse, and the step at which the run is stopped."""
    seen = by_evaluations(recorded)
    return seen.fell, seen.stopped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--until", type=int, default=10**9, help="steps after which a recording ends")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after this")
    parser.add_argument("--write", type=Path)
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
    found = verdicts(args.folder)
    if args.write:
        runs = (f"{json.dumps(name)}: {json.dumps(one, separators=(',', ':'))}" for name, one in found.items())
        args.write.write_text("{\n" + ",\n".join(runs) + "\n}\n")


if __name__ == "__main__":
    main()
