"""Pictures of the report, of real runs of the bundled models: one that goes well, and four that were ruined on purpose.

    PYTHONPATH=tests python benchmarks/report_pictures.py [--only mask] [--runs FOLDER]

The pictures of docs/reading-the-report.md and of the README; needs playwright, Pillow and a chromium. The runs are
short, a few minutes for all on one free core; with ``--runs`` they are kept, and one that is there is not made again.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from opd.loop import Loop
from opd.report.page import write_report
from opd.rollouts.sampler import Finished, Sampler
from opd.types import Prompt, Rollout
from support.altered import train_altered
from support.ruined_runs import GUARDS_OFF, LONG, repetition, sabotaged

ASSETS = Path(__file__).parents[1] / "docs" / "assets"

SHORT = {"eval.every": 10, "eval.prompts.limit": 64, "eval.diagnostics": 16, "optimizer.steps": 40, "log": []}

WIDTH, COLOURS = 1280, 96
"""Of a picture, in pixels, and of its palette."""

MOST = 150_000
"""Bytes of a picture."""


@contextmanager
def shifted_masks() -> Iterator[None]:
    """Every completion mask is one to the right of where it belongs.

    The first token of each tool result is trained on, and the first of each turn is not. The loop's assertion compares
    the tokens that student and teacher have read at the same place, and those are still the same.
    """
    right = Sampler.rollout

    def shifted(
        self: Sampler, prompts: Sequence[Prompt], seed: int, step: int = 0, finished: Finished | None = None
    ) -> list[Rollout]:
        made = right(self, prompts, seed, step)
        return [replace(r, completion_mask=(False, *r.completion_mask[:-1])) for r in made]

    Sampler.rollout = shifted  # type: ignore[method-assign]
    try:
        yield
    finally:
        Sampler.rollout = right  # type: ignore[method-assign]


@dataclass(frozen=True)
class Case:
    """A run, and what there is to see of it.

    Attributes:
        recipe, overrides: the run.
        alter: changes the loop before it runs; None leaves it as it is.
        ruined: what is wrong while it runs.
        shots: by name of the picture: what to do on the page, and what of it to show, from the first to the last.
    """

    recipe: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    alter: Callable[[Loop], Loop] | None = None
    ruined: Callable[[], Any] = nullcontext
    shots: Mapping[str, tuple[Callable[[Page], None], Sequence[str]]] = field(default_factory=dict)


def worst(page: Page) -> None:
    """With the panel of the worst token of the first step."""
    page.click("#worst")
    page.wait_for_timeout(500)


def tokens_only(page: Page) -> None:
    """Without the tables of what changed, which are not what gives it away."""
    page.evaluate("document.querySelectorAll('.changes').forEach(table => table.remove())")


def last(page: Page) -> None:
    """The same with the weights at the end, coloured by the student's entropy."""
    tokens_only(page)
    page.locator("#steps .chip").nth(-2).click()
    page.click('[data-quantity="entropy"]')


HEAD = ("#short", "#text article")

CASES = {
    "hint": Case("hint", {"optimizer.steps": 30}, shots={"tokens": (worst, ("#steps", "#panel"))}),
    "mask": Case("hint", ruined=shifted_masks, shots={"mask": (tokens_only, HEAD)}),
    "entropy": Case(
        "tml",
        {"optimizer.lr": 0.1, "optimizer.steps": 15, "eval.every": 5, **GUARDS_OFF},
        shots={"entropy": (last, HEAD)},
    ),
    "biased": Case("opd", {"teacher.model": "nano/math-biased"}, shots={"biased": (worst, HEAD)}),
    "repetition": Case(
        "opd",
        {**LONG, **GUARDS_OFF, "loss.divergence": "jsd", "optimizer.steps": 24, "eval.every": 8},
        alter=partial(sabotaged, strike=repetition, first=6, last=10**6),
        shots={"repetition": (last, HEAD)},
    ),
}


def made(name: str, case: Case, runs: Path) -> Path:
    """The page of a case's run."""
    folder = runs / name
    if not (folder / "result.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        with case.ruined():
            train_altered(case.alter, case.recipe, {**SHORT, **case.overrides, "out": str(folder)})
    return write_report(folder)


def shoot(browser: Browser, report: Path, act: Callable[[Page], None], shown: Sequence[str]) -> bytes:
    """A part of a page, as wide as the page, with few colours."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 2400}, color_scheme="light", reduced_motion="reduce")
    page.goto(report.resolve().as_uri())
    act(page)
    page.evaluate("scrollTo(0, 0)")
    boxes = [box for where in shown if (box := page.locator(where).first.bounding_box())]
    top, bottom = min(b["y"] for b in boxes) - 8, max(b["y"] + b["height"] for b in boxes) + 16
    picture = page.screenshot(clip={"x": 0, "y": max(top, 0), "width": WIDTH, "height": bottom - max(top, 0)})
    page.close()
    small = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS).save(small, "PNG", optimize=True)
    return small.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(CASES))
    parser.add_argument("--runs", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="opd-pictures-") as folder, sync_playwright() as playwright:
        reports = {n: made(n, c, chosen.runs or Path(folder)) for n, c in CASES.items() if n in (chosen.only or CASES)}
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        # The sandbox of the browser needs rights that containers do not have; the pages are our own.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, report in reports.items():
            for title, (act, shown) in CASES[name].shots.items():
                picture = shoot(browser, report, act, shown)
                path = ASSETS / f"report-{title}.png"
                assert len(picture) < MOST, f"{path} would have {len(picture):,} bytes"
                path.write_bytes(picture)
                print(f"{path}  {len(picture):,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
