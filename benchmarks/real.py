"""What a real model learns, SmolLM2-135M-Instruct: docs/real.md.

    python benchmarks/real.py [--study tools] [--seeds 3] [--folder runs/real] [--cached] [--write docs/real.md]

Four studies: calls of tools, where a hint stands, a teacher of 30 blocks and its student of 20, and a system prompt
that moves into the weights. A run that is in the folder is not made again, and one that was cut off goes on.
`--cached` makes none, and `--write` makes the page.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from methods import answers, mark, markdown, svg_panels

import opd
from opd.config.run import PromptsConfig
from opd.models.language import LanguageModel
from opd.teachers.local import LocalTeacher
from opd.types import Rollout

EXAMPLE = Path(__file__).parents[1] / "examples" / "smollm2"
MODEL = "runs/smollm2/model"
UPDATES = 20
"""Of every run that is compared, each of 16 answers."""
SEEDS = 3
"""Least number for a verdict."""

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Arm:
    """One way to train in a study.

    Attributes:
        source: run file, or its settings.
        overrides: of it.
    """

    source: str | Mapping[str, Any]
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """That one arm is ahead of another in a metric, of which more or less is better.

    Attributes:
        why: it does not hold, as far as a measurement says.
    """

    text: str
    ahead: str
    behind: str
    metric: str = "accuracy"
    more: bool = True
    why: str = ""


@dataclass(frozen=True)
class Study:
    """Runs that differ in one thing.

    Attributes:
        prepare: makes what the arms begin with, once.
        arms: by name.
        figures: shown, by the name of their metric.
        claims: judged by the figures at the end.
        student: a run's folder holds the student after it; this is the one before, where both are measured once more.
    """

    title: str
    text: str
    prepare: Callable[[], None]
    arms: Mapping[str, Arm]
    figures: Mapping[str, str]
    claims: Sequence[Claim] = ()
    student: str | None = None


def file(name: str) -> str:
    return str(EXAMPLE / f"{name}.yaml")


def prepare_tools() -> None:
    """Model, prompts, and the model that calls tools but overlooks the list."""
    prepare_model()
    if not Path("runs/smollm2/test.jsonl").exists():
        _script("make_data").main(Path("runs/smollm2"))
    if not Path("runs/smollm2/sft/result.json").exists():
        opd.train(file("sft"), {"log": []})


def prepare_model() -> None:
    """The model in its folder."""
    _script("get_model").main(Path(MODEL))


def prepare_pair() -> None:
    """The model, and a student with 20 of its blocks."""
    prepare_model()
    student = Path("runs/smollm2/cut")
    if not student.exists():
        _script("cut").main(Path(MODEL), student)


def _script(name: str) -> Any:
    """A script of the example, as a module."""
    import importlib

    if str(EXAMPLE) not in sys.path:
        sys.path.insert(0, str(EXAMPLE))
    return importlib.import_module(name)


HINT = yaml.safe_load((EXAMPLE / "hint.yaml").read_text())
HINT["eval"]["prompts"]["path"] = "runs/smollm2/test.jsonl"  # its settings were chosen on held_out.jsonl
ALONE = {key: value for key, value in HINT.items() if key != "teacher"}
"""Its settings for a run without a teacher."""

TWO_TURNS = {"rollout.max_turns": 2, "rollout.max_new_tokens": 128, "eval.max_new_tokens": 128}

GRPO = {
    "loss": {"signal": "reward"},
    "rollout.prompts_per_step": 4,
    "rollout.rollouts_per_prompt": 4,
    "guards.max_idle": UPDATES,  # where all answers to each prompt are right, or all wrong, a step has no update
}
OPSD = {"teacher.view": {"type": "privileged", "template": "{prompt}\n\nReminder: the right call is {calls}."}}
SFT = {"loss": {"signal": "sft"}, "rollout": {"source": "references", "prompts_per_step": 16, "max_new_tokens": 64}}

TOOLS = Study(
    "Calls of tools",
    "Thirty functions in six domains; names of tools and arguments are drawn for each prompt. After a short `sft` "
    "the model calls tools, and often by a name that it has seen in training and the prompt does not list. Each "
    "arm goes on from there. A rollout is one turn.",
    prepare_tools,
    {
        "hint": Arm(HINT),
        "sft": Arm(ALONE, SFT),
        "grpo": Arm(ALONE, GRPO),
        "grpo, lr 3e-4": Arm(ALONE, {**GRPO, "optimizer.lr": 3e-4}),
        "opsd": Arm(HINT, OPSD),
    },
    {
        "accuracy": "right calls",
        "invalid_call_rate": "invalid calls",
        "accuracy/new_names": "new names",
        "accuracy/new_tools": "new tools",
        "accuracy/new_domains": "new domains",
        "text_loss": "loss on chat",
    },
    (
        Claim(
            "a hint beats supervised training on the right call",
            "hint",
            "sft",
            why="In `sft` every rollout is a right call, and all of its tokens are targets. A hint is written about a "
            "wrong call alone, and the teacher scores that wrong call: the right one is never a target.",
        ),
        Claim("a hint beats GRPO", "hint", "grpo"),
        Claim("a hint beats the whole answer in the prompt", "hint", "opsd"),
        Claim("hints forget less than supervised training", "hint", "sft", "text_loss", more=False),
    ),
)

PLACES = Study(
    "Where a hint stands",
    "The same prompts, with two turns: after a wrong call the model reads the error and calls again. (In a rollout of "
    "one turn a hint above the call is one at the start: the weights after training were equal, bit for bit.)",
    prepare_tools,
    {"above the turn": Arm(HINT, TWO_TURNS), "at the start": Arm(HINT, {**TWO_TURNS, "teacher.view.place": "start"})},
    TOOLS.figures,
    (
        Claim(
            "a hint above the call beats one at the start",
            "above the turn",
            "at the start",
            why="Above the first call and at the start are one place; above the second call a hint stands one call and "
            "one error further on.",
        ),
    ),
)

OFF = {"rollout.source": {"type": "mixture", "other": "teacher", "first_steps": UPDATES}}
FIRST_OFF = {"rollout.source": {"type": "mixture", "other": "teacher", "first_steps": UPDATES // 2}}
SUPERVISED = {"rollout.source": "teacher", "loss": {"signal": "sft"}}
LSM = {
    "loss.signal": {"type": "top_k", "k": 32, "support": "teacher", "rest": "renormalise"},
    "loss.token_weights.skip_special": True,
    "rollout.top_p": 0.9,
}
OPRD = {"loss": {"signal": {"type": "hidden", "normalize": True}, "weight": 100.0}}

PLACED = "Off-policy training is on these answers; on-policy training is on answers of a student that is far from them."

TEACHER = Study(
    "A teacher and its student",
    "The teacher is the whole model; the student lacks ten blocks in its middle, 20 of 30 are left. All weights train. "
    "An arm on the teacher's answers alone has forward KL, as distillation without rollouts has. "
    "The reverse KL to the teacher is measured on sampled answers to held-out questions, the student's own and the "
    "teacher's, over all of their 48 tokens and over the first and the last quarter. It is lower on the student's own, "
    "where the teacher is unsure too: on those of the cut student both have an entropy of 4.9 nats a token.",
    prepare_pair,
    {
        "on-policy, reverse KL": Arm(file("pair")),
        "off-policy, forward KL": Arm(file("pair"), {**OFF, "loss.divergence": "forward_kl"}),
        "off- then on-policy, reverse KL": Arm(file("pair"), FIRST_OFF),
        "on-policy, forward KL": Arm(file("pair"), {"loss.divergence": "forward_kl"}),
        "on-policy, JSD": Arm(file("pair"), {"loss.divergence": "jsd"}),
        "supervised on the teacher's answers": Arm(file("pair"), SUPERVISED),
        "sampled token (tml)": Arm(file("pair"), {"loss.signal": {"type": "sampled"}}),
        "top 32 of the teacher (lsm)": Arm(file("pair"), LSM),
        "hidden states (oprd)": Arm(file("pair"), OPRD),
    },
    {
        "teacher/reverse_kl/own": "reverse KL, own answers",
        "teacher/reverse_kl/quarter_1/own": "their first quarter",
        "teacher/reverse_kl/quarter_4/own": "their last quarter",
        "teacher/reverse_kl/teacher": "reverse KL, teacher's answers",
        "teacher/reverse_kl/quarter_1/teacher": "first quarter of these",
        "teacher/reverse_kl/quarter_4/teacher": "last quarter of these",
        "text_loss": "loss on chat",
    },
    tuple(
        Claim(f"{ahead} on {place}", better, worse, metric, more=False, why=PLACED if place != "own answers" else "")
        for ahead, better, worse in (
            ("on-policy beats off-policy", "on-policy, reverse KL", "off-policy, forward KL"),
            (
                "off- then on-policy beats on-policy alone",
                "off- then on-policy, reverse KL",
                "on-policy, reverse KL",
            ),
            ("off- then on-policy beats off-policy alone", "off- then on-policy, reverse KL", "off-policy, forward KL"),
        )
        for place, metric in (
            ("own answers", "teacher/reverse_kl/own"),
            ("the teacher's answers", "teacher/reverse_kl/teacher"),
        )
    ),
    student="runs/smollm2/cut",
)

CONTEXT = Study(
    "A system prompt moves into the weights",
    "The teacher reads a system prompt that asks for the manner of a pirate; the student does not.",
    prepare_model,
    {"context": Arm(file("context")), "context, lr × 3": Arm(file("context"), {"optimizer.lr": 6e-4})},
    {"teacher/reverse_kl": "reverse KL to the model with the prompt", "text_loss": "loss on chat"},
)

STUDIES = {"tools": TOOLS, "places": PLACES, "pair": TEACHER, "context": CONTEXT}


def place(folder: Path, name: str, seed: int) -> Path:
    """The folder of a run."""
    plain = re.sub("[,()']", "", name).replace(" ", "-")
    return folder / f"{plain}-{seed}"


def measure(study: Study, arm: Arm, seed: int, out: Path) -> dict[str, Any]:
    """Before and after of one run, which is made, goes on, or is there. Seconds are CPU time unless it was cut off."""
    done = out / "result.json"
    cpu = out / "cpu.json"
    if not done.exists():
        cut_off = (out / "run.json").exists()
        settings = {**arm.overrides, "seed": seed, "out": str(out), "log": []}
        started = time.process_time()
        opd.train(arm.source, settings, resume=cut_off)
        if not cut_off:
            cpu.write_text(json.dumps(time.process_time() - started))
    result = json.loads(done.read_text())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    looks = [row["eval"] for row in rows if "eval" in row]
    steps = [row["train"] for row in rows if "train" in row]
    before, after = looks[0], looks[-1]
    if study.student:
        before = before | exposure(study.student, out.parent / f"{Path(study.student).name}.json")
        after = after | exposure(str(out), out / "exposure.json")
    return {
        "before": before,
        "after": after,
        "tokens": result["tokens"],
        "seconds": json.loads(cpu.read_text()) if cpu.exists() else result["seconds"],
        "scored": round(sum(step["tokens"] * step.get("distill_share", 0.0) for step in steps)),
    }


def exposure(student: str, kept: Path) -> Figures:
    """How far a student is from the teacher on answers of its own, and on the teacher's: ``diagnose``, each metric
    with ``/own`` or ``/teacher`` behind it. Two answers to each held-out question, sampled; measured once.
    """
    if kept.exists():
        return json.loads(kept.read_text())
    from opd.axes.views.plain import PlainView
    from opd.evaluation.diagnostics import diagnose

    model = opd.load_model(student)
    teacher, written = _teacher()
    metrics: dict[str, float] = {}
    for name, rollouts in {"own": _questions_answered(model), "teacher": written}.items():
        found = diagnose(model, rollouts, teacher, PlainView())
        metrics |= {f"{metric}/{name}": value for metric, value in found.items()}
    kept.write_text(json.dumps(metrics))
    return metrics


@cache
def _teacher() -> tuple[LocalTeacher, list[Rollout]]:
    """The teacher of the pair, and its answers."""
    model = opd.load_model(MODEL)
    return LocalTeacher(model, max_tokens=2048), _questions_answered(model)


def _questions_answered(model: LanguageModel) -> list[Rollout]:
    return answers(model, PromptsConfig(path=str(EXAMPLE / "held_out_questions.jsonl")), 2, max_new_tokens=48)


def spread(values: Sequence[float], metric: str) -> str:
    """Median and range."""
    form = ".3f" if "kl" in metric or "loss" in metric else ".1%"
    middle = f"{statistics.median(values):{form}}"
    return f"{middle} ({min(values):{form}}–{max(values):{form}})" if len(values) > 1 else middle


def verdict(ahead: Sequence[float], behind: Sequence[float], *, more: bool) -> str:
    """Whether a claim holds: the ranges over seeds do not overlap."""
    if min(len(ahead), len(behind)) < SEEDS:
        return f"undecided: fewer than {SEEDS} seeds"
    sign = 1 if more else -1
    a, b = ([sign * value for value in values] for values in (ahead, behind))
    return "holds" if min(a) > max(b) else "does **not** hold" if max(a) < min(b) else "undecided"


def section(study: Study, measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """A study's part of the page."""
    yield f"## {study.title}\n\n{study.text}"
    first = next(iter(measured.values()))[0]["before"]
    shown = {metric: title for metric, title in study.figures.items() if metric in first}
    header = ["", *shown.values(), "tokens", "scored", "s", "seeds"]
    lines = [["before", *(spread([first[metric]], metric) for metric in shown), "", "", "", ""]]
    for name, runs in measured.items():
        after = [spread([run["after"][metric] for run in runs], metric) for metric in shown]
        costs = [f"{statistics.median(run[cost] for run in runs):,.0f}" for cost in ("tokens", "scored", "seconds")]
        lines.append([name, *after, *costs, str(len(runs))])
    yield markdown(header, lines)
    claims, reasons = [], []
    for claim in study.claims:
        if {claim.ahead, claim.behind} <= measured.keys() and claim.metric in first:
            sides = [[run["after"][claim.metric] for run in measured[name]] for name in (claim.ahead, claim.behind)]
            said = " against ".join(spread(side, claim.metric) for side in sides)
            judged = verdict(*sides, more=claim.more)
            claims.append([claim.text, said, judged])
            if claim.why and judged != "holds":
                reasons.append(f"- **{claim.text}**: {claim.why}")
    if claims:
        yield markdown(["claim", "here", ""], claims)
    if reasons:
        yield "\n".join(reasons)


def page(measured: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    """The whole page."""
    parts = [
        "# A real model, measured",
        "Written by `python benchmarks/real.py --write docs/real.md`; do not edit. SmolLM2-135M-Instruct, its weights "
        f"rounded to 4 bits before, on a CPU; {UPDATES} updates of 16 answers each. Medians over seeds with their "
        "range; tokens are those that the student wrote, scored those of them with a signal. A claim holds if the "
        "ranges of three seeds do not overlap.",
        "![What each arm reached against its cost](real.svg)",
        *(part for name, study in STUDIES.items() if name in measured for part in section(study, measured[name])),
    ]
    return "\n\n".join(parts) + "\n"


def draw(measured: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], path: Path) -> None:
    """What each arm of the studies of more than one reached, against seconds of CPU: medians and ranges."""
    shown = [name for name in measured if len(measured[name]) > 1]
    figure, panels = svg_panels(len(shown))
    for panel, name in zip(panels, shown, strict=True):
        metric, title = next(iter(STUDIES[name].figures.items()))
        cost = {arm: statistics.median(run["seconds"] for run in runs) for arm, runs in measured[name].items()}
        for arm, runs in measured[name].items():
            mark(panel, cost[arm], [run["after"][metric] for run in runs], fmt="o", label=arm)
        panel.axhline(next(iter(measured[name].values()))[0]["before"][metric], ls=":")
        panel.set(
            xlim=(0, 1.1 * max(cost.values())),
            title=f"{STUDIES[name].title} (dotted: before)",
            ylabel=title,
            xlabel="seconds of CPU",
        )
        panel.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", action="append", choices=STUDIES)
    parser.add_argument("--arm", action="append", help="only these arms")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--folder", type=Path, default=Path("runs/real"))
    parser.add_argument("--cached", action="store_true", help="make no run; report those that have ended")
    parser.add_argument("--write", type=Path, help="write the page here, and the figure beside it")
    args = parser.parse_args()
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE"}
    measured: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in args.study or STUDIES:
        study = STUDIES[name]
        if not args.cached:
            study.prepare()
        for seed, (arm, how) in product(range(args.seeds), study.arms.items()):
            out = place(args.folder, f"{name} {arm}", seed)
            if (args.arm and arm not in args.arm) or (args.cached and not (out / "result.json").exists()):
                continue
            found = measure(study, how, seed, out)
            measured.setdefault(name, {}).setdefault(arm, []).append(found)
            print(name, arm, seed, json.dumps(found["after"]), flush=True)
    text = page(measured)
    print(text)
    if args.write:
        args.write.write_text(text)
        draw(measured, args.write.with_suffix(".svg"))


if __name__ == "__main__":
    main()
