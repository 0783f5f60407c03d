"""Every recipe on the nano suite beside what its source reports, and what the papers claim: docs/methods.md.

    python benchmarks/methods.py [--seeds 3] [--workers 2] [--only tml --only lsm] [--write docs/methods.md]

Figures are greedy accuracy on 128 prompts of the test split and the mean of two sampled answers (avg@2), medians over
seeds with their range. Recipes run as shipped. A claim holds if the ranges over seeds do not overlap, in the claim's
direction.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from opd.config.read import read, recipe_names
from opd.config.run import MethodConfig, PromptsConfig, RunConfig
from opd.output.method_map import AXES, MEASURED, place

if TYPE_CHECKING:
    from opd.models.language import LanguageModel
    from opd.types import Rollout

DECIDED = "## Decided with 8 seeds"
"""Heading of the section that benchmarks/claims.py writes into the same page."""

DENOISING = "## Denoising students"
"""Heading of the section that benchmarks/diffusion.py writes into the same page."""

ELSEWHERE = (DECIDED, DENOISING)
"""Headings of sections that other benchmarks write, in their order behind all others."""

CLEARLY = 0.05
"""By how much two figures have to differ where one of them is of a single seed."""

GUARDS_OFF = {"guards.drop": 1.0, "guards.below_start": 1.0}
"""For what may fall before it rises, and for collapses that are to be seen."""

COLLAPSE = {"optimizer.steps": 50, **GUARDS_OFF}
"""Long enough for a live teacher to come to its end."""

EARLY = {"optimizer.steps": 8, "eval.every": 8}
"""Where a recipe ends at 100 %, its variants are compared while there is a difference to see."""


@dataclass(frozen=True)
class Run:
    """A recipe with overrides, under a name."""

    recipe: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


VARIANTS: dict[str, Run] = {
    "off-policy only": Run("opd", {"rollout.source": {"type": "mixture", "first_steps": 150}, **GUARDS_OFF}),
    "opsd, reverse KL": Run("opsd", {"loss.divergence": "reverse_kl", **GUARDS_OFF}),
    "opsd, JSD": Run("opsd", {"loss.divergence": "jsd", **GUARDS_OFF}),
    "opcd, live": Run("opcd", {"teacher.weights": "live", **COLLAPSE}),
    "hint, live, no anchor": Run("hint", {"teacher.weights": "live", "loss.anchor": 0.0, **COLLAPSE}),
    "hint, 8 steps": Run("hint", EARLY),
    "hint at the start, 8 steps": Run("hint", {"teacher.view.place": "start", **EARLY}),
    "one hint a rollout, 8 steps": Run("hint", {"teacher.view.max_hints": 1, **EARLY}),
}
"""Not recipes, but what to compare them with."""


@dataclass(frozen=True)
class Figures:
    """What one run came to."""

    before: dict[str, float]
    after: dict[str, float]
    steps: int
    tokens: int
    """Rolled out by the student in training."""
    teacher_tokens: int
    """Of those, how many a teacher gave a target for."""
    seconds: float
    stopped_by: str | None
    curve: list[tuple[int, float]]
    """Updates and greedy accuracy at every look."""
    train: dict[str, list[float]]
    """By metric: mean of the first and of the last ten steps."""


@dataclass(frozen=True)
class Claim:
    """What a source says about two runs, as a figure of the first that ought to be above the second's."""

    text: str
    reported: str
    better: str
    worse: str
    metric: str = "accuracy"


CLAIMS = (
    Claim("privileged self-distillation beats GRPO", "Qwen3-1.7B 43.4 against 37.7 (2601.18734)", "opsd", "grpo"),
    Claim("in opsd, forward KL beats reverse KL", "43.9 against 37.5 (2601.18734)", "opsd", "opsd, reverse KL"),
    Claim("in opsd, forward KL beats JSD", "43.9 against 36.9 (2601.18734)", "opsd", "opsd, JSD"),
    Claim("in opcd, frozen beats live", "53.9 against 18.8, Sokoban (2602.12275)", "opcd", "opcd, live"),
    Claim("in hint, frozen beats live", "21 % → 0 % live (our own first design)", "hint", "hint, live, no anchor"),
    Claim("feedback beats GRPO", "70.2 against 66.6 (2601.20802)", "sdpo", "grpo"),
    Claim("local support beats the sampled token", "41.7 against 36.4 (2603.25562)", "lsm", "tml"),
    Claim("off- then on-policy beats on-policy alone", "cold start: .55 → .75 overlap (2604.13016)", "qwen3", "opd"),
    Claim("off- then on-policy beats off-policy alone", "74.4 against 55.0 (2505.09388)", "qwen3", "off-policy only"),
    Claim("on-policy beats supervised, sampled", "as good at a ninth of the cost (TML)", "opd", "sft", "avg@2"),
    Claim(
        "a hint above the turn beats one at the start",
        "+8.7 against +2.7 points (2605.17873)",
        "hint, 8 steps",
        "hint at the start, 8 steps",
        "avg@2",
    ),
    Claim(
        "several hints beat one",
        "41.9 against fewer turns (2605.17873)",
        "hint, 8 steps",
        "one hint a rollout, 8 steps",
        "avg@2",
    ),
    Claim("hidden states beat the top k", "49.8 against 47.1, one shape (2606.06021)", "oprd", "lsm"),
    Claim("a bridge to another width falls behind", "11.2 against 15.3 (2606.06021)", "lsm", "oprd"),
    Claim("going beyond the teacher's reward beats not", "48.0 against 46.5 (2602.12125)", "gopd", "tml"),
    Claim("early tokens weighted beat all alike", "(2606.22600)", "iw", "tml"),
    Claim("the teacher's doubts learned beat leaving them", "Pass@8 +1.4 to +5.1 (2603.07079)", "entropy", "tml"),
    Claim("distillation with reward beats GRPO", "56.8 against 54.6 (2506.02208)", "kdrl", "grpo"),
    Claim("offline reaches online", "69.9 at a quarter of the cost (2604.13010)", "lightning", "tml"),
)


def measure(run: Run, seed: int, folder: str) -> Figures:
    """One run in a folder of its own."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    import opd

    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    looks = 20 if run.recipe == "tml" else 1000
    fixed = {
        "eval.prompts.limit": 128,
        "eval.rollouts_per_prompt": 2,
        "eval.every": looks,
        "log": [],
        "seed": seed,
        "out": str(out),
    }
    result = opd.train(run.recipe, {**fixed, **run.overrides})
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [row["train"] for row in rows if "train" in row]
    return Figures(
        before=result.before,
        after=result.after,
        steps=result.steps,
        tokens=result.tokens,
        teacher_tokens=round(sum(step["tokens"] * step.get("distill_share", 0.0) for step in steps)),
        seconds=result.seconds,
        stopped_by=result.stopped_by,
        curve=[(row["step"], row["eval"]["accuracy"]) for row in rows if "eval" in row],
        train={
            name: [statistics.fmean(part) for part in (values[:10], values[-10:])]
            for name in ("grad_norm", "distill_share", "policy_gradient_share")
            if (values := [step[name] for step in steps if name in step])
        },
    )


def answers(
    model: LanguageModel, prompts: PromptsConfig, each: int, *, max_new_tokens: int, max_turns: int = 1
) -> list[Rollout]:
    """Some answers to each held-out prompt, sampled at temperature 1; the same at each call."""
    from opd.data.prompts import HELD_OUT, load_prompts
    from opd.engines.hf import HFEngine
    from opd.evaluation.evaluate import SEED
    from opd.models.chat import Chat
    from opd.models.language import stop_ids
    from opd.rollouts.sampler import Sampler

    loaded, task = load_prompts(prompts, key="eval.prompts", has_template=True, splits=HELD_OUT)
    sampler = Sampler(
        HFEngine(model),
        Chat(model.tokenizer),
        task,
        stop_ids=stop_ids(model),
        max_new_tokens=max_new_tokens,
        max_turns=max_turns,
        max_length=model.max_length,
    )
    return sampler.rollout([prompt for prompt in loaded for _ in range(each)], SEED)


def measure_all(
    runs: Mapping[str, Run],
    seeds: Sequence[int],
    workers: int,
    cache: Path,
    measure: Callable[[Run, int, str], Figures] = measure,
) -> dict[str, list[Figures]]:
    """All runs and seeds, as many at a time as there are workers; those in the cache are not run again."""
    console = Console(stderr=True)
    known: dict[str, dict[str, Any]] = json.loads(cache.read_text()) if cache.exists() else {}
    wanted = {key_of(run, seed): (run, seed) for seed in seeds for run in runs.values()}
    with (
        tempfile.TemporaryDirectory(prefix="opd-methods-") as folder,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        missing = {pool.submit(measure, *wanted[key], folder): key for key in wanted if key not in known}
        failed: list[BaseException] = []
        for number, done in enumerate(as_completed(missing), 1):
            if error := done.exception():  # the others are not lost for it
                failed.append(error)
                console.print(f"{number}/{len(missing)} {missing[done]} failed: {error!r}", highlight=False)
                continue
            known[missing[done]] = asdict(done.result())
            cache.write_text(json.dumps(known))
            console.print(f"{number}/{len(missing)} {missing[done]}", highlight=False)
        if failed:
            raise failed[0]
    return {n: [Figures(**known[key_of(run, seed)]) for seed in seeds] for n, run in runs.items()}


def key_of(run: Run, seed: int) -> str:
    """What decides a run's figures: all of its settings, and its seed."""
    config = read(run.recipe, run.overrides).model_dump(mode="json", exclude={"method"}, exclude_defaults=True)
    settings = hashlib.sha256(json.dumps(config).encode()).hexdigest()[:12]
    return f"{run.recipe} {dict(run.overrides) or ''} seed {seed} {settings}"


def spread(values: Sequence[float]) -> str:
    """Median and range, in percent."""
    middle = f"{statistics.median(values):.1%}"
    return f"{middle} ({min(values):.1%}–{max(values):.1%})" if len(values) > 1 else middle


def row(results: Sequence[Figures]) -> list[str]:
    """One line of the table of figures."""
    before = results[0].before
    stops = [r.stopped_by for r in results if r.stopped_by]
    overlap = [r.after["teacher/overlap@16"] for r in results if "teacher/overlap@16" in r.after]
    first = before.get("teacher/overlap@16")
    return [
        f"{before['accuracy']:.1%}",
        spread([r.after["accuracy"] for r in results]),
        f"{before['avg@2']:.1%}",
        spread([r.after["avg@2"] for r in results]),
        f"{first:.2f} → {statistics.median(overlap):.2f}" if overlap and first is not None else "–",
        f"{statistics.median(r.steps for r in results):.0f}",
        f"{statistics.median(r.tokens for r in results) / 1000:.0f} k",
        f"{statistics.median(r.teacher_tokens for r in results) / 1000:.0f} k",
        f"{statistics.median(r.seconds for r in results):.0f}",
        ", ".join(stops) or "–",
    ]


def judged(claim: Claim, measured: Mapping[str, Sequence[Figures]]) -> list[str]:
    """A claim beside what was measured."""
    better, worse = ([r.after[claim.metric] for r in measured[name]] for name in (claim.better, claim.worse))
    alone = min(len(better), len(worse)) == 1
    by = CLEARLY if alone else 0.0
    clear = "holds" if min(better) > max(worse) + by else None
    verdict = clear or ("does **not** hold" if max(better) < min(worse) - by else "undecided")
    if alone:
        verdict += ", one seed"
    sides = ", ".join(
        f"`{name}` {spread(values)} in {statistics.median(r.seconds for r in measured[name]):.0f} s"
        for name, values in ((claim.better, better), (claim.worse, worse))
    )
    return [claim.text, claim.reported, sides + (", sampled" if claim.metric == "avg@2" else ""), verdict]


def fewer_updates(measured: Mapping[str, Sequence[Figures]]) -> str:
    """After how many updates ``tml`` has what GRPO ends with."""
    goal = statistics.median(r.after["accuracy"] for r in measured["grpo"])
    reached = [next((step for step, value in r.curve if step and value >= goal), None) for r in measured["tml"]]
    whole = statistics.median(r.steps for r in measured["grpo"])
    said = ", ".join("never" if step is None else str(step) for step in reached)
    return (
        f"`grpo` ends at {goal:.1%} after {whole:.0f} updates; `tml`, looked at every 20, has that after {said} "
        "(7 to 10 times fewer reported by Thinking Machines)."
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def method_of(name: str) -> tuple[RunConfig, MethodConfig]:
    config = read(name)
    assert isinstance(config, RunConfig)
    assert config.method is not None
    return config, config.method


def report(measured: Mapping[str, Sequence[Figures]], names: Sequence[str], seeds: int) -> str:
    """The whole page."""
    header = [
        "",
        "greedy before",
        "after",
        "avg@2 before",
        "after",
        "overlap@16",
        "updates",
        "tokens",
        "teacher tokens",
        "s",
        "stopped by",
    ]
    methods = {name: method_of(name) for name in names}
    axes = [[f"`{n}`", *place(config)] for n, (config, _) in methods.items()]
    sources = [[f"`{n}`", method.title, method.source, method.reported] for n, (_, method) in methods.items()]
    tasks: dict[str, list[list[str]]] = {}
    for name, results in measured.items():
        tasks.setdefault(_task(name, names), []).append([f"`{name}`" if name in names else name, *row(results)])
    claims = [c for c in CLAIMS if c.better in measured and c.worse in measured]
    parts = [
        "# The methods, measured",
        f"Written by `make methods` with {seeds} seed{'s' * (seeds > 1)}; do not edit. Two shared CPU cores, the "
        "bundled models of 0.3 to 1 M parameters, 128 test prompts, each recipe as shipped: this says what a method "
        "does here, not how it ranks at scale. Learning rates and numbers of updates are ours and differ.",
        "![Accuracy against cost](methods.svg)",
        *(part for task, rows in tasks.items() for part in (f"## On `{task}`", markdown(header, rows))),
        "## What the papers claim, here",
        "A claim holds if the ranges over seeds do not overlap.",
        markdown(["claim", "reported", "here", ""], [judged(c, measured) for c in claims]),
        *([fewer_updates(measured)] if {"tml", "grpo"} <= measured.keys() else []),
        "## The map",
        markdown(["recipe", *AXES], axes),
        "## What the sources report",
        markdown(["recipe", "what", "source", "reported"], sources),
    ]
    return "\n\n".join(parts) + "\n"


def summary(results: Sequence[Figures]) -> dict[str, list[float]]:
    """By metric: before, and median, least and most after; for ``opd methods NAME``."""
    pairs = [{n: (r.before[n], r.after[n]) for n in r.before if n in r.after} | r.train for r in results]
    names = [n for n in pairs[0] if all(n in p for p in pairs)]
    ends = {n: [p[n][1] for p in pairs] for n in names}
    return {
        n: [round(x, 4) for x in (pairs[0][n][0], statistics.median(ends[n]), min(ends[n]), max(ends[n]))]
        for n in names
    }


def sections(page: str) -> dict[str, str]:
    """The page's sections by heading, each with its heading; what stands above the first one under an empty heading."""
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    return {part.partition("\n")[0] if part.startswith("## ") else "": part for part in parts if part.strip()}


def joined(parts: Mapping[str, str]) -> str:
    """The page, with the sections that other benchmarks write at its end."""
    last = [heading for heading in ELSEWHERE if heading in parts]
    ordered = [*(heading for heading in parts if heading not in last), *last]
    return "\n\n".join(parts[heading].strip("\n") for heading in ordered) + "\n"


def write_section(path: Path, text: str) -> None:
    """Put a section into the page, in place of the one with the same heading if there is one."""
    path.write_text(joined({**sections(path.read_text() if path.exists() else ""), **sections(text)}))


def write_page(path: Path, text: str) -> None:
    """Write the page anew, but for the sections that other benchmarks write."""
    old = sections(path.read_text() if path.exists() else "")
    path.write_text(joined({**sections(text), **{heading: old[heading] for heading in ELSEWHERE if heading in old}}))


def remember(figures: Mapping[str, Any]) -> None:
    """Keep recipes' figures for `opd methods NAME`, beside those of recipes that are not among them."""
    path = Path(str(MEASURED))
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(dict(sorted({**known, **figures}.items())), indent=1) + "\n")


def draw(measured: Mapping[str, Sequence[Figures]], names: Sequence[str], path: Path) -> None:
    """Sampled accuracy against time, one point a recipe."""
    figure, panels = svg_panels(2)
    for panel, task in zip(panels, ("math", "tools"), strict=True):
        for name, results in measured.items():
            if _task(name, names) != task or "8 steps" in name:
                continue
            x = statistics.median(r.seconds for r in results)
            y = mark(panel, x, [r.after["avg@2"] for r in results], fmt="o" if name in names else "s")
            panel.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
        panel.margins(x=0.15)
        panel.axhline(next(r[0].before["avg@2"] for n, r in measured.items() if _task(n, names) == task), ls=":")
        panel.set(title=f"{task}: sampled accuracy (dotted: before)", xlabel="seconds of training", ylim=(-0.02, 1.04))
    figure.savefig(path, metadata={"Date": None})


def svg_panels(number: int) -> tuple[Any, list[Any]]:
    """A figure of panels beside each other, whose file is the same whenever it is drawn."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "opd"
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, number, figsize=(6 * number, 5), layout="constrained", squeeze=False)
    return figure, list(panels[0])


def mark(panel: Any, x: float, values: Sequence[float], **style: Any) -> float:
    """Draw the median of some values with their range; the median."""
    y = statistics.median(values)
    panel.errorbar(x, y, yerr=[[y - min(values)], [max(values) - y]], capsize=2, **style)
    return y


def _task(name: str, names: Sequence[str]) -> str:
    return read(name if name in names else VARIANTS[name].recipe).prompts.task or ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", action="append", choices=[*recipe_names("language"), *VARIANTS])
    parser.add_argument(
        "--write", type=Path, help="write the page here, the figure beside it, and `opd methods`'s figures"
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/methods.json"), help="figures of runs already made")
    args = parser.parse_args()
    args.cache.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    runs = {name: Run(name) for name in recipe_names("language")} | VARIANTS
    chosen = {name: run for name, run in runs.items() if not args.only or name in args.only}
    names = [name for name in chosen if name not in VARIANTS]
    measured = measure_all(chosen, range(args.seeds), args.workers, args.cache)
    page = report(measured, names, args.seeds)
    print(page)
    Console(stderr=True).print(f"{(time.monotonic() - started) / 60:.0f} minutes")
    if args.write:
        write_page(args.write, page)
        draw(measured, names, args.write.with_suffix(".svg"))
        remember({n: summary(measured[n]) for n in names})


if __name__ == "__main__":
    main()
