"""Whether the gate lets good teachers teach and keeps bad ones away: benchmarks/README.md.

    python benchmarks/gate.py [--seeds 5]

Each seed brings its own held-out prompts, 32 of them, its own training prompts and draws. A gate judges before the
first step and after each of two. Good is a teacher that is right on the prompts it is asked about, far more often than
the student; bad is the one that forgets every carry where there are any, and a model that cannot add. A refusal of a
good teacher at any judgement is a false one; a bad teacher has to be refused at all of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sums  # tasks are named as sums:…

import opd
from opd.axes.base import Objects
from opd.config.read import read, recipe_names
from opd.config.run import RunConfig
from opd.errors import ConfigError
from opd.language.run import LanguageRun
from opd.output.run_log import RunLog

STEPS, EVERY = 2, 1
SMALL = {
    "teacher.gate": {},
    "rollout.prompts_per_step": 8,
    "optimizer.steps": STEPS,
    "eval.every": EVERY,
    "eval.diagnostics": 8,
    "guards.drop": 1.0,
    "guards.below_start": 1.0,
    "checkpoint.every": 1000,
    "log": [],
}
BIASED = "nano/math-biased"
BOTH = {
    "teacher.model": None,
    "teacher.models": {
        "good": {"model": "nano/math-teacher", "domains": [sums.CARRY, sums.PLAIN, "math"]},
        "biased": {"model": BIASED, "domains": [sums.CARRY, sums.PLAIN, "math"]},
    },
}


@dataclass(frozen=True)
class Case:
    """A student and its teachers.

    Attributes:
        recipe, overrides: the run.
        task: its prompts, a class of ``sums``.
        good, bad: which teacher on which domain, in the words of the gate.
    """

    recipe: str
    overrides: Mapping[str, Any]
    task: str
    good: Sequence[str] = ()
    bad: Sequence[str] = ()


EVERYWHERE = (f"teacher/{sums.CARRY}", f"teacher/{sums.PLAIN}")

PAIRS = {
    "tools-base ← math-teacher": Case("opd", {"student": "nano/tools-base"}, "Sums", EVERYWHERE),
    "critic ← math-teacher": Case("opd", {"student": "nano/critic"}, "Sums", EVERYWHERE),
    "math-biased ← math-teacher, carries": Case("opd", {"student": BIASED}, "Carries", EVERYWHERE[:1]),
    "math-base ← math-biased, no carries": Case("opd", {"teacher.model": BIASED}, "Plain", EVERYWHERE[1:]),
    "math-base ← math-teacher and math-biased": Case(
        "opd", BOTH, "Sums", ("good/carry", "good/plain", "biased/plain"), ("biased/carry",)
    ),
    "the same, domains not told": Case("opd", BOTH, "Drawn", ("good/math",), ("biased/math",)),
    "math-base ← math-biased": Case("opd", {"teacher.model": BIASED}, "Drawn", bad=("teacher/math",)),
    "math-base ← critic": Case("opd", {"teacher.model": "nano/critic"}, "Sums", bad=EVERYWHERE),
}


def recipes() -> tuple[dict[str, Case], dict[str, str]]:
    """Recipes whose teacher is another model: those that a gate may watch, and why it may not watch the others."""
    watched, others = {}, {}
    for name in recipe_names("language"):
        if not read(name).teacher.is_model:
            continue
        try:
            read(name, {"teacher.gate": {}})
            watched[f"recipe `{name}`"] = Case(name, {}, "Sums", EVERYWHERE)
        except ConfigError as error:
            others[name] = str(error).splitlines()[-1].strip()
    return watched, others


def config(case: Case, seed: int, out: Path) -> dict[str, Any]:
    """The run file's overrides of one seed."""
    prompts = {
        "prompts": {"task": f"sums:{case.task}"},
        "eval.prompts": {"task": f"sums:{case.task}", "split": f"test/{seed}", "limit": 32},
    }
    return {**SMALL, **prompts, **case.overrides, "seed": seed, "out": str(out)}


def refusals(case: Case, seed: int, folder: Path) -> list[set[str]]:
    """Who is refused at each judgement of a run; one judgement if no teacher is left."""
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    try:
        events = opd.train(case.recipe, config(case, seed, out)).events
    except ConfigError as error:
        if "no teacher is left" not in str(error):
            raise
        return [{*case.good, *case.bad}]  # whoever was good is counted as refused
    refused: set[str] = set()
    judged = []
    for step in range(0, STEPS + 1, EVERY):
        for event in events:
            if event["kind"] == "gate" and event["step"] == step:
                who, what = event["text"].split(":")[0].replace(" does not teach ", " teaches ").split(" teaches ")
                (refused.add if "does not" in event["text"] else refused.discard)(f"{who}/{what}")
        judged.append(set(refused))
    return judged


def caught_up(student: str, seed: int, folder: Path) -> bool:
    """Whether a teacher that has taught so far is refused by a student that has become as good."""
    case = Case("opd", {"student": student}, "Sums")
    out = Path(tempfile.mkdtemp(dir=folder))
    run_file = read("opd", config(case, seed, out / "run"))
    assert isinstance(run_file, RunConfig)
    loop = LanguageRun.load(run_file, Objects()).assemble(RunLog(out / "log", [], []))
    assert loop.gate is not None
    assert loop.evaluate is not None
    return bool(loop.gate(loop.evaluate(), [])[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    watched, others = recipes()
    false, good, caught, bad, judgements = 0, 0, 0, 0, 0
    print("| student and teacher | judgements | good refused | bad refused | s |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="opd-gate-") as temporary:
        folder = Path(temporary)
        for name, case in {**watched, **PAIRS}.items():
            started = time.perf_counter()
            runs = [refusals(case, seed, folder) for seed in range(args.seeds)]
            wrong = sum(any(label in now for now in run) for run in runs for label in case.good)
            right = sum(all(label in now for now in run) for run in runs for label in case.bad)
            goods, bads = args.seeds * len(case.good), args.seeds * len(case.bad)
            made = sum(len(run) for run in runs) * len([*case.good, *case.bad])
            cells = [f"{wrong} of {goods}" if goods else "–", f"{right} of {bads}" if bads else "–"]
            print(f"| {name} | {made} | {' | '.join(cells)} | {time.perf_counter() - started:.0f} |", flush=True)
            false, good, caught, bad = false + wrong, good + goods, caught + right, bad + bads
            judgements += made
        print()
        learned = str(folder / "learned")
        long = {
            **SMALL,
            "teacher.gate": None,
            "rollout.prompts_per_step": 32,
            "optimizer.steps": 60,
            "eval.prompts": None,
        }
        opd.train("opd", {**long, "prompts": {"task": "sums:Sums"}, "out": learned})
        for who, student in (("trained for 60 steps", learned), ("that is the teacher", "nano/math-teacher")):
            late = sum(caught_up(student, seed, folder) for seed in range(args.seeds))
            print(f"A student {who}: its teacher, which taught until then, is refused {late} times of {args.seeds}.")
            false, good, judgements = false + late, good + args.seeds, judgements + args.seeds
    print(
        f"\n{judgements} judgements. Good teachers refused: {false} of {good}. Bad teachers refused: {caught} of {bad}."
    )
    print("Recipes that a gate does not watch, on the same models or with another tokenizer:")
    for name, reason in others.items():
        print(f"- `{name}`: {reason}")


if __name__ == "__main__":
    main()
