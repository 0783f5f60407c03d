"""Denoising students, their baselines and the papers' results: docs/methods.md.

    python benchmarks/diffusion.py [--seeds 3] [--workers 2] [--only d-opsd] [--write docs/methods.md]

Several task teachers in one student, against other methods with the same number of updates and trajectories; and a new
concept for a two-step student, against supervised fine-tuning on the same twelve images. Accuracy is the share of
held-out prompts whose image shows everything that they name, by a judge that no run was trained on; medians over seeds
with their range, 256 prompts per domain.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from methods import (
    DENOISING,
    Claim,
    Figures,
    Run,
    judged,
    markdown,
    measure_all,
    remember,
    spread,
    summary,
    write_section,
)

DOMAINS = ("shapes", "count", "digits")
GUARDS_OFF = {"guards.drop": 1.0, "guards.below_start": 1.0}
NO_TEACHER = {"teacher.models": None}
AVERAGE = "mean of the teachers' weights"

TASKS: dict[str, Run] = {
    "diffusion-opd": Run("diffusion-opd"),
    "diffusion-opd, SDE": Run("diffusion-opd", {"loss.divergence": "transition_kl", "rollout.noise": 0.7}),
    "teachers' states": Run("diffusion-opd", {"rollout.source": "teacher"}),
    "teachers' images": Run(
        "diffusion-opd",
        {
            "rollout.source": {"type": "images", "of": "teacher"},
            "loss.signal": "image",
            "loss.divergence": "velocity",
            "loss.step_weights": None,
        },
    ),
    "mixed rewards": Run(
        "diffusion-opd",
        {
            "loss.signal": "reward",
            "rollout.noise": 0.7,
            "rollout.prompts_per_step": 6,
            "rollout.rollouts_per_prompt": 8,
            "optimizer.lr": 3e-4,
            **NO_TEACHER,
            **GUARDS_OFF,
        },
    ),
    AVERAGE: Run("diffusion-opd", {"optimizer.steps": 1}),
}
"""Three teachers, one student: on-policy, off-policy, on teachers' images, by rewards alone, by averaged weights."""

FINE_TUNING = {
    "rollout.source": "images",
    "loss.signal": "image",
    "teacher.view": "plain",
    "loss.anchor": 0.0,
    "prompts": {"task": "images", "split": "concept/train"},
    "rollout.prompts_per_step": 12,
    "rollout.rollouts_per_prompt": 4,
    "eval.prompts": [{"task": "images", "split": "concept/test"}, {"task": "images", "split": "shapes/test"}],
    **GUARDS_OFF,
}
CONCEPT: dict[str, Run] = {
    "d-opsd": Run("d-opsd"),
    "d-opsd, average": Run("d-opsd", {"teacher.weights": {"type": "ema", "decay": 0.99}}),
    "d-opsd, live": Run("d-opsd", {"teacher.weights": "live", **GUARDS_OFF}),
    "d-opsd, no anchor": Run("d-opsd", {"loss.anchor": 0.0, **GUARDS_OFF}),
    "fine-tuning": Run("d-opsd", FINE_TUNING),
    "fine-tuning, anchored": Run(
        "d-opsd", {"rollout.source": "images", "loss.signal": "image", "teacher.view": "plain", **GUARDS_OFF}
    ),
}
"""A new concept for a two-step student, on the same twelve images."""

ONCE = frozenset(
    {"diffusion-opd, SDE", "teachers' states", AVERAGE, "d-opsd, average", "d-opsd, live", "d-opsd, no anchor"}
)
"""Runs with one seed: no claim depends on them, or they are deterministic."""

LONG = 16
"""Steps of the long sampler."""

TOO_EASY = (
    "Contrary to the paper, fine-tuning does not lose the two-step sampler here: models that were never distilled also "
    "generate these shapes in two steps. It does forget old prompts, and so does `d-opsd` without an anchor; with an "
    "anchor neither does. Fine-tuning then ends closer to the concept, because its target is the image itself and not "
    "the teacher's prediction."
)
"""Under the table of the concept."""

CLAIMS = (
    Claim(
        "distilling on the student's states beats mixed-reward training",
        "normalised mean .929 against .763 (2605.15055)",
        "diffusion-opd",
        "mixed rewards",
        "least share",
    ),
    Claim(
        "it beats fine-tuning on teachers' images",
        "a curve without numbers (2605.15055)",
        "diffusion-opd",
        "teachers' images",
        "least share",
    ),
    Claim(
        "the student's states beat the teachers'",
        "within noise in a reproduction at 8×8",
        "diffusion-opd",
        "teachers' states",
        "least share",
    ),
    Claim(
        "the deterministic trajectory beats the stochastic one",
        "up to 5× faster, a curve (2605.15055)",
        "diffusion-opd",
        "diffusion-opd, SDE",
        "least share",
    ),
    Claim(
        "distillation beats averaging weights",
        "Flow-OPD begins with the average (2605.08063)",
        "diffusion-opd",
        AVERAGE,
        "least share",
    ),
    Claim(
        "d-opsd keeps what fine-tuning on the same images destroys, neither anchored",
        "GenEval .717 against .159, quality 3.84 against 2.61 (2605.05204)",
        "d-opsd, no anchor",
        "fine-tuning",
        "accuracy/shapes",
    ),
    Claim(
        "d-opsd learns the concept better, both anchored",
        "DINO-D .0823 against .1588 (2605.05204, without anchors)",
        "d-opsd",
        "fine-tuning, anchored",
        "accuracy/concept",
    ),
    Claim(
        "old prompts stay without an anchor",
        "GenEval .754 → .717 (2605.05204)",
        "d-opsd, no anchor",
        "d-opsd",
        "accuracy/shapes",
    ),
    Claim("a frozen teacher beats a live one", "the live one collapses (2605.05204)", "d-opsd", "d-opsd, live"),
)


def measure(run: Run, seed: int, folder: str) -> Figures:
    """Train one run in its own folder, and measure its weights with the long sampler too."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    import opd

    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    fixed = {"eval.every": 1000, "report": False, "log": [], "seed": seed, "out": str(out)}
    averages = run.overrides.get("optimizer.steps") == 1
    if averages:
        fixed |= {"student": str(average(run, Path(folder) / "average")), "optimizer.lr": 1e-12}
    result = opd.train(run.recipe, {**fixed, **run.overrides})
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [row["train"] for row in rows if "train" in row]
    after = result.after | {f"{name}@{LONG}": value for name, value in at_length(run, out).items()}
    return Figures(
        before=result.before,
        after=after,
        steps=0 if averages else result.steps,
        tokens=result.tokens,
        teacher_tokens=round(sum(step["tokens"] * step.get("distill_share", 0.0) for step in steps)),
        seconds=0.0 if averages else result.seconds,
        stopped_by=result.stopped_by,
        curve=[],
        train={},
    )


def with_least_share(measured: Mapping[str, list[Figures]]) -> None:
    """Add the least accuracy over domains, each as a share of its teacher's accuracy."""
    known = next((r.after for runs in measured.values() for r in runs if "teacher_accuracy/shapes" in r.after), {})
    for run in [run for name, runs in measured.items() if name in TASKS for run in runs]:
        shares = [run.after[f"accuracy/{d}"] / known[f"teacher_accuracy/{d}"] for d in DOMAINS]
        run.after["least share"] = min(shares)


def at_length(run: Run, model: Path) -> dict[str, float]:
    """Metrics of a run's weights with the long sampler."""
    from opd.axes.base import Objects
    from opd.config.diffusion import DiffusionConfig
    from opd.config.read import read
    from opd.diffusion.run import DenoisingRun

    plain = {"student": str(model), "lora": None, "eval.steps": LONG, "eval.teacher": False}
    config = read(run.recipe, {**run.overrides, **plain})
    assert isinstance(config, DiffusionConfig)
    evaluation = DenoisingRun.load(config, Objects()).evaluation()
    assert evaluation is not None
    return evaluation()


def average(run: Run, folder: Path) -> Path:
    """Save a pipeline whose denoiser is the mean of the teachers', with their adapters merged."""
    import torch

    from opd.axes.base import Objects
    from opd.config.diffusion import DiffusionConfig
    from opd.config.read import read
    from opd.diffusion.run import DenoisingRun

    config = read(run.recipe, {"lora": None})
    assert isinstance(config, DiffusionConfig)
    run_of_teachers = DenoisingRun.load(config, Objects())
    merged = []
    for teacher in run_of_teachers.teachers.values():
        model = copy.deepcopy(teacher.model)
        model.fuse_lora()
        model.unload_lora()
        merged.append(model.state_dict())
    mean = {name: torch.stack([state[name].float() for state in merged]).mean(0) for name in merged[0]}
    run_of_teachers.student.model.load_state_dict(mean)
    run_of_teachers.student.save(folder)
    return folder


def tasks_table(measured: Mapping[str, Sequence[Figures]]) -> str:
    """Each domain's accuracy, and its teacher's."""
    header = ["", *DOMAINS, "least share of a teacher's", "Fréchet", "updates", "student's denoising steps", "s"]
    first = next(iter(measured.values()))[0]
    rows = [
        [
            "base",
            *(f"{first.before[f'accuracy/{d}']:.1%}" for d in DOMAINS),
            "",
            f"{first.before['frechet']:.2f}",
            *[""] * 3,
        ],
        ["its own teacher", *(f"{first.before[f'teacher_accuracy/{d}']:.1%}" for d in DOMAINS), "100 %", "", *[""] * 3],
    ]
    for name, runs in measured.items():
        rows.append(
            [
                f"`{name}`" if name in TASKS and name == "diffusion-opd" else name,
                *(spread([r.after[f"accuracy/{d}"] for r in runs]) for d in DOMAINS),
                spread([r.after["least share"] for r in runs]),
                number([r.after["frechet"] for r in runs]),
                f"{statistics.median(r.steps for r in runs):.0f}",
                f"{statistics.median(r.tokens for r in runs) / 1000:.0f} k",
                f"{statistics.median(r.seconds for r in runs):.0f}",
            ]
        )
    return markdown(header, rows)


def concept_table(measured: Mapping[str, Sequence[Figures]]) -> str:
    """Accuracy on the new concept and on old prompts, in two steps and in many."""
    names = ("accuracy/concept", "accuracy/shapes", "frechet")
    header = [
        "",
        "concept, 2 steps",
        "old, 2 steps",
        "Fréchet",
        "concept, 16",
        "old, 16",
        "Fréchet, 16",
        "updates",
        "s",
    ]
    first = next(iter(measured.values()))[0].before
    rows = [["few-step base", f"{first[names[0]]:.1%}", f"{first[names[1]]:.1%}", f"{first[names[2]]:.2f}", *[""] * 5]]
    for name, runs in measured.items():
        rows.append(
            [
                f"`{name}`" if name == "d-opsd" else name,
                *(
                    (number if key == "frechet" else spread)([r.after[f"{key}{end}"] for r in runs])
                    for end in ("", f"@{LONG}")
                    for key in names
                ),
                f"{statistics.median(r.steps for r in runs):.0f}",
                f"{statistics.median(r.seconds for r in runs):.0f}",
            ]
        )
    return markdown(header, rows)


def number(values: Sequence[float]) -> str:
    """Median and range."""
    middle = f"{statistics.median(values):.2f}"
    return f"{middle} ({min(values):.2f}–{max(values):.2f})" if len(values) > 1 else middle


def section(measured: Mapping[str, Sequence[Figures]], seeds: int) -> str:
    """The part of the page."""
    tasks = {name: measured[name] for name in TASKS if name in measured}
    concept = {name: measured[name] for name in CONCEPT if name in measured}
    claims = [c for c in CLAIMS if c.better in measured and c.worse in measured]
    parts = [
        DENOISING,
        f"Written by `python benchmarks/diffusion.py` with {seeds} seed{'s' * (seeds > 1)}, or one if no range is "
        "given; do not edit. Images of 16×16 pixels, pipelines of a million weights, 256 prompts per domain, a judge "
        "that no run was trained on. Teachers were fine-tuned on correct captions, not by reward. The ability to use "
        "an image in the context was trained and did not emerge. The Fréchet distance uses the judge's features and "
        "is no FID. Within a table every run has the same number of updates and trajectories, and the same learning "
        "rate except for rewards: 3e-4 instead of 1e-3.",
        *(["### Three teachers, one student", tasks_table(tasks)] if tasks else []),
        *(["### A new concept for a two-step student", concept_table(concept), TOO_EASY] if concept else []),
        "### The papers' claims, measured here",
        "A claim holds if the ranges over seeds do not overlap; with one seed, if the values are five points apart.",
        markdown(["claim", "reported", "here", ""], [judged(c, measured) for c in claims]),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    runs = TASKS | CONCEPT
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", action="append", choices=list(runs))
    parser.add_argument("--write", type=Path, help="write the section into this page, and the metrics of `opd methods`")
    parser.add_argument("--cache", type=Path, default=Path("runs/diffusion.json"), help="metrics of finished runs")
    args = parser.parse_args()
    args.cache.parent.mkdir(parents=True, exist_ok=True)
    chosen: dict[str, Any] = {name: run for name, run in runs.items() if not args.only or name in args.only}
    measured: dict[str, list[Figures]] = {}
    for seeds, names in ((args.seeds, chosen.keys() - ONCE), (1, chosen.keys() & ONCE)):
        some = {name: run for name, run in chosen.items() if name in names}
        measured |= measure_all(some, range(seeds), args.workers, args.cache, measure)
    with_least_share(measured)
    text = section(measured, args.seeds)
    print(text)
    if args.write:
        write_section(args.write, text)
        remember({name: summary(measured[name]) for name in ("diffusion-opd", "d-opsd") if name in measured})


if __name__ == "__main__":
    main()
