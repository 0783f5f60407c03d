"""Two teachers that contradict each other, and what a student makes of them under each setting: benchmarks/README.md.

    python benchmarks/conflict.py [--seeds 3] [--steps 40] [--only alternate]

Half of the prompts are sums with a carry, half are sums without one. `nano/math-teacher` is right on both;
`nano/math-biased` forgets every carry, so it is right on the second half and surely wrong on the first. Both teach
`nano/math-base` by the recipe `opd`, 32 prompts a step. Figures are greedy, on 128 held-out sums that differ by seed:
median over seeds (least–most). JSD is between the two teachers on the student's answers, in nats; the cosine is that of
the loss's gradients on the two halves.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import sums  # tasks are named as sums:…

import opd
from opd.axes.views.plain import PlainView
from opd.engines.hf import HFEngine
from opd.experimental.conflict import Conflict
from opd.losses.objectives import FullVocabulary, SeveralTeachers
from opd.models.chat import Chat
from opd.models.language import stop_ids
from opd.models.loading import load
from opd.models.pool import ModelPool
from opd.rollouts.sampler import Sampler
from opd.teachers.by_domain import TeachersByDomain

STUDENT, SOURCES = "nano/math-base", {"good": "nano/math-teacher", "biased": "nano/math-biased"}
DOMAINS = (sums.CARRY, sums.PLAIN)
UNTOLD = {"prompts.domain": "sums", "eval.prompts.domain": "sums"}


def teachers(good: Sequence[str] = DOMAINS, biased: Sequence[str] = DOMAINS, **settings: Any) -> dict[str, Any]:
    """The run file's ``teacher``: who reads which domains, and how they are combined."""
    domains = {"good": good, "biased": biased}
    models = {name: {"model": SOURCES[name], "domains": list(of)} for name, of in domains.items() if of}
    return {"teacher": {"models": models, **settings}}


SETTINGS: dict[str, dict[str, Any]] = {
    "the good teacher alone": teachers(biased=()),
    "mean of the losses": teachers(),
    "arithmetic mean": teachers(combine="arithmetic"),
    "geometric mean": teachers(combine="geometric"),
    "alternate": teachers(combine="alternate"),
    "mixed by measured quality": teachers(gate={"by_quality": True}),
    "the same, domains not told": teachers(["sums"], ["sums"], gate={"by_quality": True}) | UNTOLD,
    "routed": teachers([sums.CARRY], [sums.PLAIN]),
}


def run(settings: dict[str, Any], seed: int, steps: int, folder: Path) -> dict[str, float]:
    """One run's figures."""
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    several = len(settings["teacher"]["models"]) > 1
    overrides = {
        "prompts": {"task": "sums:Sums"},
        "eval.prompts": {"task": "sums:Sums", "split": f"test/{seed}", "limit": 64},
        "eval.every": max(steps // 2, 1),
        "eval.diagnostics": 32,
        "experimental.conflict": several,
        "rollout.prompts_per_step": 32,
        "optimizer.steps": steps,
        "guards.drop": 1.0,  # a student that a teacher ruins is what is shown here
        "guards.below_start": 1.0,
        "checkpoint.every": steps,
        "log": [],
        "seed": seed,
        "out": str(out),
    }
    started = time.perf_counter()
    result = opd.train("opd", {**overrides, **settings})
    found = sums.greedy(str(out), f"test/{seed}") | {"seconds": time.perf_counter() - started}
    for name, value in result.after.items():
        kind, _, about = name.removeprefix("conflict/").partition("/")
        if name.startswith("conflict/"):
            found["cosine" if kind == "cosine" else f"jsd {about.split('/')[0]}"] = value
    return found


def pull(seed: int) -> str:
    """How the teachers stand to each other before the first step: the same answers, read by one and by the other."""
    student = load(STUDENT, key="student")
    pool = ModelPool(SOURCES, key="teacher.models")
    engine = HFEngine(student)
    sampler = Sampler(engine, Chat(student.tokenizer), sums.Sums(), stop_ids=stop_ids(student), max_new_tokens=64)
    rollouts = sampler.rollout(sums.Sums().prompts(f"test/{seed}")[:64], seed)
    said = []
    for domain in DOMAINS:
        own = [r for r in rollouts if r.prompt.domain == domain]
        # The cosine is between domains: the same answers stand in one for each teacher.
        twice = [replace(r, prompt=replace(r.prompt, domain=name)) for name in SOURCES for r in own]
        teachers = TeachersByDomain(pool, {name: {name: 1.0} for name in SOURCES})
        objective = SeveralTeachers(inner=FullVocabulary(divergence="reverse_kl"))
        found = Conflict(student, teachers, PlainView(), objective)(twice)
        cosine, jsd = (next(v for k, v in found.items() if k.startswith(f"conflict/{n}")) for n in ("cosine", "jsd"))
        said.append(f"sums {'with' if domain == sums.CARRY else 'without'} a carry: JSD {jsd:.3f}, cosine {cosine:.2f}")
    return "; ".join(said)


def cell(runs: Sequence[dict[str, float]], name: str, *, percent: bool) -> str:
    """Median (least–most); a dash where it is not measured."""
    values = sorted(found[name] for found in runs if name in found)
    if not values:
        return "–"
    form = "{:.1%}" if percent else "{:.2f}"
    middle, least, most = (form.format(v) for v in (statistics.median(values), values[0], values[-1]))
    return f"{middle} ({least}–{most})" if len(values) > 1 else middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", action="append", choices=list(SETTINGS))
    args = parser.parse_args()
    print(f"The two teachers' gradients on the same answers of the student, before the first step: {pull(0)}.\n")
    shares = ("accuracy", sums.CARRY, sums.PLAIN, "forgotten")
    figures = ("jsd carry", "jsd plain", "jsd sums", "cosine")
    print(
        "| teachers | accuracy | with a carry | without | carries forgotten | JSD with | without | all | cosine | s |"
    )
    print("|" + "---|" * 10)

    def show(name: str, runs: Sequence[dict[str, float]]) -> None:
        cells = [cell(runs, n, percent=True) for n in shares] + [cell(runs, n, percent=False) for n in figures]
        seconds = statistics.median(found["seconds"] for found in runs) if "seconds" in runs[0] else 0
        print(f"| {name} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)

    show("the student before", [sums.greedy(STUDENT, f"test/{seed}") for seed in range(args.seeds)])
    with tempfile.TemporaryDirectory(prefix="opd-conflict-") as folder:
        for name, settings in SETTINGS.items():
            if not args.only or name in args.only:
                show(name, [run(settings, seed, args.steps, Path(folder)) for seed in range(args.seeds)])


if __name__ == "__main__":
    main()
