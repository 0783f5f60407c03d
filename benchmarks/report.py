"""What the report costs: the seconds that recording and writing take of a run, and the size of the page.

    python benchmarks/report.py            # hint, opd and opsd, 40 steps each
    python benchmarks/report.py --steps 200

The recorder counts its own seconds inside the run, in the same process and under the same load, so the share holds on a
busy machine too; a second run without it shows that weights are the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from opd import api
from opd.report.page import REPORT
from opd.report.record import Recorder

RECIPES = ("hint", "opd", "opsd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--same", action="store_true", help="run each again without a report and compare weights")
    chosen = parser.parse_args()
    table = Table("recipe", "steps", "run, s", "recording, s", "share", "rollouts kept, kB", "page, kB", "same weights")
    for recipe in chosen.recipes:
        table.add_row(recipe, str(chosen.steps), *measure(recipe, chosen.steps, same=chosen.same))
    Console(width=120).print(table)


def measure(recipe: str, steps: int, *, same: bool) -> list[str]:
    """One run of a recipe as it ships, but for its length."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "with"
        recorders: list[Recorder] = []
        keep(recorders)
        started = time.perf_counter()
        api.train(recipe, {"optimizer.steps": steps, "log": [], "out": str(out)})
        whole, recording = time.perf_counter() - started, recorders[-1].seconds
        sizes = [(out / name).stat().st_size / 1000 for name in ("rollouts.jsonl", REPORT)]
        verdict = "–"
        if same:
            other = Path(folder) / "without"
            api.train(recipe, {"optimizer.steps": steps, "log": [], "report": False, "out": str(other)})
            a, b = (load_file(path / "model.safetensors") for path in (out, other))
            verdict = "yes" if all(torch.equal(a[name], b[name]) for name in a) else "NO"
    share = recording / (whole - recording)
    return [f"{whole:.0f}", f"{recording:.2f}", f"{share:.1%}", *(f"{size:.0f}" for size in sizes), verdict]


def keep(recorders: list[Recorder]) -> None:
    """Let the recorders of runs to come be looked at afterwards."""
    finish = Recorder.finish

    def noticed(recorder: Recorder) -> None:
        recorders.append(recorder)
        finish(recorder)

    Recorder.finish = noticed  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    main()
