"""Ways to ruin a run, each with and without recovery: docs/recovery.md.

    PYTHONPATH=tests python benchmarks/recovery.py [--only "live teacher"] [--write docs/recovery.md]

A run without recovery has its guards off, so that the collapse is seen to its end; with the same seed both are the
same run until something is detected. Onset is the first step from which on, without recovery, the accuracy of rollouts
never again comes to within three standard errors of its best; where something is injected, it is the step of that.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

import opd
from support.ruined_runs import GUARDS_OFF, INJECTED, RECOVER, SCENARIOS, Scenario, curve, onset, run

TEXT = """# Recovery: runs that were ruined on purpose

`guards.recover={}` lets a run go back to its last good checkpoint when it collapses, and on from there with smaller
steps, a stronger anchor and a teacher that no longer follows the student blindly. Every step's rollouts are watched. A
run looks collapsed where, in the median of five steps, a **symptom** shows *and* the student does **worse**:

| symptom | beside the first step's rollouts |
|---|---|
| `kl_vanished` | the KL to the teacher, per token, is below a tenth: no signal, or the teacher equals the student |
| `kl_exploded` | it is above three times |
| `entropy_collapsed`, `entropy_exploded` | the entropy is below a tenth, or above five times |
| `repeating` | the share of repetitive rollouts is up by 20 points |
| `too_long` | rollouts are more than twice as long |
| `truncated` | the share cut off is up by 25 points |

Worse means that the accuracy of rollouts, or their mean reward, has lost a tenth of its best, and more than chance
explains. Either alone
also happens in a healthy run: a student that equals its teacher has no KL left, and accuracy can fall for some steps
while the student changes its answers. Without rewards, repetition, length and truncation each count alone, and the
other symptoms count only if the KL has grown. Losses that are not finite are left out as they come;
`guards.max_skipped` of them in a row, weights that are not finite, and a collapse that an evaluation finds count too.
All thresholds are keys of `guards.recover`, and so is how often a run may go back (3); after that it stops.

The watch is on without `guards.recover` too, if no evaluation judges the run: no held-out prompts, or neither answers
nor a divergence to measure on them. It then begins after the warm-up, ten steps at the earliest, and a collapse ends
the run with its last good checkpoint, so that `checkpoint.every` decides how much is lost. A change within three
standard errors of a metric's own scatter from step to step is no symptom.

A run goes back to the last checkpoint whose rollouts were no worse than those before. A rollback restores the weights
and the optimizer's state, not the step: it goes on counting, with other prompts and draws. A run that has rolled back
ends with its best evaluated weights.

Each line is two runs from the same seed, checkpoints every 5 steps, evaluations every 10:
`PYTHONPATH=tests python benchmarks/recovery.py --write docs/recovery.md`. Without recovery all guards are off. Onset is
the first step from which on, without recovery, the accuracy of rollouts never again comes to within three standard
errors of its best, or the step of the injection.
"""


def finite(result: opd.Result) -> bool:
    """Whether the weights at the end of a run, not the best that are left, are numbers."""
    last = max((result.out / "checkpoints").glob("[0-9]*"))
    return all(bool(t.isfinite().all()) for t in load_file(last / "model.safetensors").values())


def row(name: str, scenario: Scenario, folder: Path) -> str:
    """A line of the table."""
    on, off = (run(scenario, folder, keys) for keys in (RECOVER, GUARDS_OFF))
    began = scenario.first if scenario.strike in INJECTED else onset(curve(off), prompts=64)
    backs = sum(event["kind"] == "rollback" for event in on.events)
    stops = [f", stopped at {r.steps} ({r.stopped_by})" if r.stopped_by else "" for r in (on, off)]
    accuracies = [f"{on.before['accuracy']:.1%}", f"{on.after['accuracy']:.1%}{stops[0]}"]
    seen = next((e for e in on.events if e["kind"] != "rollback"), {"step": "–", "kind": "–"})
    collapsed = "not a number" if not off.after or not finite(off) else f"{off.after['accuracy']:.1%}"
    cells = [began, seen["step"], f"`{seen['kind']}`", backs, *accuracies, collapsed + stops[1]]
    return f"| {name} | {' | '.join(map(str, cells))} |"


def page(rows: Sequence[str]) -> str:
    """docs/recovery.md."""
    head = "| | onset | detected | by | rollbacks | accuracy before | after, with recovery | without |"
    return "\n".join([TEXT, head, "|---|---|---|---|---|---|---|---|", *rows, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(SCENARIOS))
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="opd-recovery-") as folder:
        for name, scenario in SCENARIOS.items():
            if not args.only or name in args.only:
                rows.append(row(name, scenario, Path(folder)))
                print(rows[-1], flush=True)
    if args.write:
        args.write.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
