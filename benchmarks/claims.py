"""Claims that three seeds left undecided, with eight: a section of docs/methods.md.

    python benchmarks/claims.py [--seeds 8] [--others 16] [--only "feedback beats GRPO"] [--cached]
                                [--write docs/methods.md]

The two runs of a claim differ in what the claim is about and in nothing else, and both end before the task is solved.
They are measured once, after the last update. A claim that the first seeds leave undecided is judged by others, and by
those alone: adding them to the first until something is decided would find differences that are none. Runs are made
claim by claim, and none that is in the cache is made again; ``--cached`` makes none at all and reports the claims that
are complete.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import methods
import series
from methods import DECIDED, Figures, Run, answers, key_of, markdown, measure_all, write_section
from scipy import stats

if TYPE_CHECKING:
    from opd.config.run import RunConfig

SAMPLES = 8
"""Answers to each of the 256 prompts of a test split; a figure's standard error is at most 1.1 points."""

EQUAL = 0.02
"""Two runs are equal if the whole interval of their difference is within this."""

CONFIDENCE = 0.95


REPORTED = {claim.text: claim.reported for claim in methods.CLAIMS}
"""By the words of a claim."""


@dataclass(frozen=True)
class Pair:
    """Two named runs for a claim of ``methods.CLAIMS``: a figure of the first ought to be above the second's."""

    claim: str
    condition: str
    better: tuple[str, Run]
    worse: tuple[str, Run]
    metric: str = f"avg@{SAMPLES}"
    why: str = ""
    """Why the claim does not hold, or why the two are equal, as far as a measurement says; left out if it holds."""


@dataclass(frozen=True)
class Verdict:
    """The paired difference by seed: mean, half of its confidence interval, and what follows."""

    mean: float
    half: float

    @classmethod
    def of(cls, better: Sequence[float], worse: Sequence[float]) -> Verdict:
        """By Student's t, with one degree of freedom less than there are seeds; of a single seed nothing follows."""
        differences = [b - w for b, w in zip(better, worse, strict=True)]
        if len(differences) == 1:
            return cls(differences[0], math.inf)
        t = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
        return cls(statistics.fmean(differences), t * float(stats.sem(differences)))

    @property
    def words(self) -> str:
        low, high = self.mean - self.half, self.mean + self.half
        if low > 0:
            return "holds"
        if high < 0:
            return "does **not** hold"
        return "equal within 2 points" if low >= -EQUAL and high <= EQUAL else "undecided"

    @property
    def interval(self) -> str:
        """In points."""
        low, high = (100 * (self.mean + side * self.half) for side in (-1, 1))
        return f"{100 * self.mean:+.1f} ({low:+.1f} to {high:+.1f})"


def sized(recipe: str, steps: int, prompts: int = 32, rollouts: int = 1, **more: Any) -> Run:
    """A recipe at equal numbers of updates and rollouts; ``__`` stands for the dot of a key."""
    size = {"optimizer.steps": steps, "rollout.prompts_per_step": prompts, "rollout.rollouts_per_prompt": rollouts}
    other = {key.replace("__", "."): value for key, value in more.items()}
    return Run(recipe, {**size, "eval.rollouts_per_prompt": SAMPLES, **other})


def hint(place: str) -> Run:
    return sized("hint", 8, prompts=64, teacher__view__place=place)


def long_hint(place: str) -> Run:
    """``hint`` with its own settings, which a student that is not bundled would not get."""
    keys: dict[str, Any] = {
        "student": str(SERIES),
        "prompts__task": "series:Series",
        "eval__prompts__task": "series:Series",
        "optimizer__lr": 5e-4,
        "optimizer__micro_batch": None,
        "rollout__max_new_tokens": 400,
        "rollout__max_turns": 24,
        "eval__rollouts_per_prompt": 4,
    }
    return sized("hint", 5, teacher__view__place=place, **keys)


def sampled(recipe: str) -> Run:
    return sized(recipe, 40, optimizer__warmup=5)


def grouped(recipe: str) -> Run:
    return sized(recipe, 40, prompts=8, rollouts=8, optimizer__warmup=5, optimizer__schedule="cosine")


def full(recipe: str, **more: Any) -> Run:
    return sized(recipe, FULL, optimizer__warmup=2, **more)


def teacher_first(steps: int) -> Run:
    return full("qwen3", rollout__source={"type": "mixture", "other": "teacher", "first_steps": steps})


SERIES = Path("runs/series-student")
"""The student of ``series.py``, built once."""

FULL = 30
"""Updates of the runs by the full vocabulary, with a warm-up in proportion; after 150 all of them are above 93 %."""

ON_POLICY = ("`opd`", full("opd"))
TWO_STAGES = ("`qwen3`, 8 updates off-policy", teacher_first(8))
TOKEN = ("`tml`", sampled("tml"))
BY_FULL = f"`math`, {FULL} updates of 32 rollouts"
BY_TOKEN = "`math`, 40 updates of 32 rollouts"
SHORT = "`tools`, two calls a conversation, 8 updates of 64 rollouts"
PASS = f"pass@{SAMPLES}"
LONG = "four questions in a conversation, an error in one of six calls, 5 updates of 32 rollouts"
GROUPS = "`math`, 40 updates of 8 prompts with 8 rollouts each"

PAIRS = (
    Pair(
        "a hint above the turn beats one at the start",
        SHORT,
        ("`hint`", hint("turn")),
        ("at the start", hint("start")),
        why="A rollout has at most 64 tokens, so the two places are never far apart.",
    ),
    Pair(
        "on-policy beats supervised, sampled",
        BY_FULL,
        ON_POLICY,
        ("`sft`", full("sft")),
        why="It is a matter of how long one trains. After these 30 updates the student is right in two of five sampled "
        "answers, so on-policy most targets stand in wrong answers; `sft` has right ones from the first update. After "
        "150 updates (the table above) it is 94.9 % against 93.4 %.",
    ),
    Pair("off- then on-policy beats on-policy alone", BY_FULL, TWO_STAGES, ON_POLICY),
    Pair(
        "off- then on-policy beats off-policy alone",
        BY_FULL,
        TWO_STAGES,
        ("off-policy only", teacher_first(FULL)),
        why="As in the line on supervised training: 30 updates are too few for the student's own answers to be "
        "better data than the teacher's. After 150 updates the two are within the spread of three seeds (above).",
    ),
    Pair("early tokens weighted beat all alike", BY_TOKEN, ("`iw`", sampled("iw")), TOKEN),
    Pair("going beyond the teacher's reward beats not", BY_TOKEN, ("`gopd`", sampled("gopd")), TOKEN),
    Pair("the teacher's doubts learned beat leaving them", BY_TOKEN, ("`entropy`", sampled("entropy")), TOKEN, PASS),
    Pair(
        "a hint above the turn beats one at the start",
        LONG,
        ("`hint`", long_hint("turn")),
        ("at the start", long_hint("start")),
        metric="avg@4",
    ),
    Pair("feedback beats GRPO", GROUPS, ("`sdpo`", grouped("sdpo")), ("`grpo`", grouped("grpo"))),
)
"""The cheapest first."""


def measure(run: Run, seed: int, folder: str) -> Figures:
    """One run, and its answers to held-out prompts. Seconds are CPU time of the training, one thread."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    import opd
    from opd.config.read import read
    from opd.config.run import RunConfig

    config = read(run.recipe, run.overrides)
    assert isinstance(config, RunConfig)
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    fixed: dict[str, Any] = {"eval.prompts": None, "log": [], "seed": seed, "out": str(out)}
    started = time.process_time()
    result = opd.train(run.recipe, {**run.overrides, **fixed})
    seconds = time.process_time() - started
    after = held_out(str(out), config)
    shutil.rmtree(out)
    return Figures({}, after, result.steps, result.tokens, 0, seconds, result.stopped_by, [], {})


def held_out(model: str, config: RunConfig) -> dict[str, float]:
    """Of n sampled answers to each held-out prompt, ``avg@n``, the share that is right, and ``pass@n``, the share of
    prompts with a right one."""
    import opd

    assert config.eval.prompts is not None
    loaded, n = opd.load_model(model), config.eval.rollouts_per_prompt
    size = config.rollout
    written = answers(loaded, config.eval.prompts, n, max_new_tokens=size.max_new_tokens, max_turns=size.max_turns)
    right = [bool(rollout.correct) for rollout in written]
    by_prompt = [right[i : i + n] for i in range(0, len(right), n)]
    return {f"avg@{n}": statistics.fmean(right), f"pass@{n}": statistics.fmean(map(any, by_prompt))}


def known(cache: Path) -> set[str]:
    """The keys of all runs that were made."""
    return set(json.loads(cache.read_text())) if cache.exists() else set()


def complete(pair: Pair, seeds: Sequence[int], made: set[str]) -> bool:
    return all(key_of(side, seed) in made for _, side in (pair.better, pair.worse) for seed in seeds)


def row(pair: Pair, better: Sequence[Figures], worse: Sequence[Figures]) -> tuple[list[str], Verdict]:
    """A line of the table, and what it says."""
    figures = [[result.after[pair.metric] for result in results] for results in (better, worse)]
    verdict = Verdict.of(*figures)
    sides = ", ".join(
        f"{name} {statistics.fmean(values):.1%} in {statistics.median(r.seconds for r in results):.0f} s"
        for (name, _), values, results in zip((pair.better, pair.worse), figures, (better, worse), strict=True)
    )
    cells = [pair.claim, REPORTED[pair.claim], pair.condition, f"{sides}; {pair.metric}"]
    return [*cells, verdict.interval, f"±{100 * verdict.half:.1f}", verdict.words], verdict


def section(measured: Sequence[tuple[Pair, Sequence[Figures], Sequence[Figures], str]], seeds: int) -> str:
    """The part of the page; the last of a line says which seeds decided it."""
    header = ["claim", "reported", "condition", "here", "seeds", "difference, points", "power", ""]
    judged = []
    for pair, better, worse, by in measured:
        cells, verdict = row(pair, better, worse)
        judged.append((pair, [*cells[:4], by, *cells[4:]], verdict))
    reasons = [f"- **{p.claim}**: {p.why}" for p, _, verdict in judged if p.why and verdict.words != "holds"]
    parts = [
        DECIDED,
        f"Written by `python benchmarks/claims.py` with {seeds} seeds; do not edit. Claims that three seeds leave "
        "undecided above, under conditions in which neither run ends near 100 %. The two runs of a line differ in what "
        "the claim is about; prompts and their order, updates and rollouts are the same. Figures are means over seeds, "
        "measured after the last update on 256 test prompts with n answers each (avg@n), sampled at temperature 1. "
        f"What {seeds} seeds leave undecided is judged by others, and by those alone. "
        "The difference is paired by seed, with its 95 % confidence interval (Student's t). A claim holds if the "
        "interval is above 0 and does not hold if it is below; two runs are equal if it lies within 2 points of 0. "
        "Power is half of the interval: a smaller difference cannot be seen. Seconds are CPU time of the training, one "
        "thread of two shared cores.",
        markdown(header, [cells for _, cells, _ in judged]),
        *(["\n".join(reasons)] if reasons else []),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--others", type=int, default=16, help="seeds for the claims that the first leave undecided")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", action="append", choices=[pair.claim for pair in PAIRS])
    parser.add_argument("--cached", action="store_true", help="make no run; report the claims whose runs are all made")
    parser.add_argument("--write", type=Path, help="write the section into this page")
    parser.add_argument("--cache", type=Path, default=Path("runs/claims.json"), help="figures of runs already made")
    args = parser.parse_args()
    args.cache.parent.mkdir(parents=True, exist_ok=True)
    chosen = [pair for pair in PAIRS if not args.only or pair.claim in args.only]
    first, others = range(args.seeds), range(args.seeds, args.seeds + args.others)
    made = known(args.cache)
    measured = []
    for pair in chosen:
        if args.cached and not complete(pair, first, made):
            continue
        sides = dict((pair.better, pair.worse))
        if any(run.overrides.get("student") == str(SERIES) for run in sides.values()) and not SERIES.exists():
            series.build(SERIES)
        better, worse = measure_all(sides, first, args.workers, args.cache, measure).values()
        _, verdict = row(pair, better, worse)
        by = str(len(first))
        if verdict.words == "undecided" and others and (not args.cached or complete(pair, others, made)):
            by = f"{len(others)} others; of the first {len(first)}: {verdict.interval}"
            better, worse = measure_all(sides, others, args.workers, args.cache, measure).values()
        measured.append((pair, better, worse, by))
        print(" | ".join([*row(pair, better, worse)[0], by]), flush=True)
    if args.write and measured:
        write_section(args.write, section(measured, args.seeds))


if __name__ == "__main__":
    main()
