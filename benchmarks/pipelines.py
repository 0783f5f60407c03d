"""The published pipelines on the bundled models, several seeds each: docs/pipelines-measured.md.

    python benchmarks/pipelines.py [--only deepseek-v4] [--seeds 3] [--out runs/pipelines] [--write FILE]

A pipeline that has run in ``--out`` is not run again; one that was killed goes on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import opd
from opd.models.loading import load
from opd.pipelines.graph import REFERENCE

ROOT = Path(__file__).parents[1]
TASKS = ("math", "tools", "strings", "search")

Figures = Mapping[str, Mapping[str, float]]
"""By model, then by name."""

TEXT = """# The published pipelines, measured

Each is one file in `examples/`, started with `opd pipeline examples/NAME.yaml`, from `nano/base`: {parameters}
parameters, weak at all four tasks. Greedy accuracy on 256 held-out prompts a task, and that of one answer a prompt
sampled at temperature 1; the mean over seeds, in brackets the least and the most. Two stages at a time on two cores.

    python benchmarks/pipelines.py --write docs/pipelines-measured.md
"""


class Measured(NamedTuple):
    """One pipeline with one seed."""

    figures: Figures
    seconds: float
    tokens: Mapping[str, int]


def accuracy(figures: Figures, model: str, task: str) -> float:
    return figures[model][f"accuracy/{task}"]


def run(name: str, seed: int, out: Path) -> Measured:
    """The figures of the stage ``scores``, the stages' seconds on one core in all, and student tokens by stage."""
    result = opd.pipeline(ROOT / "examples" / f"{name}.yaml", {"seed": seed, "out": str(out / f"{name}-{seed}")})
    if result.problems:
        raise SystemExit("\n".join(result.problems))
    figures = {_short(model): row for model, row in result.stages["scores"].result["metrics"].items()}
    seconds = sum(stage.result["seconds"] for stage in result.stages.values() if "seconds" in stage.result)
    return Measured(figures, seconds, {n: s.result.get("tokens", 0) for n, s in result.stages.items()})


def _short(model: str) -> str:
    reference = REFERENCE.fullmatch(model)
    return reference[1] if reference else model


def spread(values: Iterable[float], form: str = ".1%") -> str:
    """Mean, and in brackets the least and the most where they differ."""
    found = list(values)
    mean, least, most = (f"{value:{form}}" for value in (statistics.mean(found), min(found), max(found)))
    return mean if least == most else f"{mean} ({least}–{most})"


def shares(figures: Figures, model: str) -> list[float]:
    """What a model reaches of each expert's accuracy on that expert's task."""
    return [accuracy(figures, model, task) / accuracy(figures, task, task) for task in TASKS]


def experts(runs: Sequence[Measured]) -> list[str]:
    """How close each way of joining four experts comes to them."""
    lines = ["The least share of an expert's accuracy on its own task, over tasks and seeds:", ""]
    for model in ("student", "merged", "answers", "mixed-grpo"):
        tokens = statistics.mean(run.tokens[model] for run in runs)
        least = min(min(shares(run.figures, model)) for run in runs)
        lines.append(f"- `{model}`: {least:.1%}" + (f", {tokens:,.0f} tokens trained on" if tokens else ""))
    return lines


def forgetting(runs: Sequence[Measured]) -> list[str]:
    """What the second stage forgot and the third brought back."""
    lost, back, skill = [], [], []
    for figures, *_ in runs:
        before, after, end = (
            statistics.mean(accuracy(figures, model, task) for task in ("math", "strings", "search"))
            for model in ("sft", "rl", "recovered")
        )
        lost.append(before - after)
        back.append((end - after) / (before - after))
        skill.append(accuracy(figures, "rl", "tools") - accuracy(figures, "recovered", "tools"))
    return [
        f"- forgotten on math, strings and search, mean of the three: {spread((100 * x for x in lost), '.1f')} points",
        f"- of that brought back: {spread(back)}",
        f"- lost on tools by it: {spread((100 * x for x in skill), '.1f')} points",
    ]


def nothing(runs: Sequence[Measured]) -> list[str]:
    return []


PIPELINES: dict[str, tuple[str, Callable[[Sequence[Measured]], list[str]]]] = {
    "deepseek-v4": ("four experts by fine-tuning and GRPO, one student of all (arXiv 2606.19348)", experts),
    "mopd": ("one teacher a task and the outcome reward, sampled token (arXiv 2601.02780)", nothing),
    "glm5": ("what a later stage forgot, taught back by earlier checkpoints (arXiv 2602.15763)", forgetting),
    "qwen3": ("off-policy, then on-policy (arXiv 2505.09388)", nothing),
}


def section(name: str, runs: Sequence[Measured]) -> list[str]:
    """Title, table and what follows from it."""
    (title, verdict), seeds = PIPELINES[name], f"{len(runs)} seeds" if len(runs) > 1 else "one seed"
    lines = [
        f"## {name}: {title}",
        "",
        f"| | {' | '.join(TASKS)} | all, sampled |",
        "|---|" + "---|" * (len(TASKS) + 1),
    ]
    for model in runs[0].figures:
        cells = [spread(accuracy(run.figures, model, task) for run in runs) for task in TASKS]
        cells.append(spread(run.figures[model]["avg@1"] for run in runs))
        lines.append(f"| `{model}` | {' | '.join(cells)} |")
    said = verdict(runs)
    minutes = statistics.mean(run.seconds for run in runs) / 60
    return [
        *lines,
        "",
        *said,
        *([""] if said else []),
        f"{seeds.capitalize()}; {minutes:.0f} minutes of one core in all stages.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(PIPELINES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/pipelines"))
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    size = sum(p.numel() for p in load("nano/base", key="student").model.parameters())
    lines = [TEXT.format(parameters=f"{size:,}")]
    for name in args.only or PIPELINES:
        lines += section(name, [run(name, seed, args.out) for seed in range(args.seeds)])
        print("\n".join(lines), flush=True)
        lines = lines if args.write else []
    if args.write:
        args.write.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
