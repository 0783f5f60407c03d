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

import opd
from opd.loop import Loop
from opd.report.page import write_page, write_report
from opd.rollouts.sampler import Finished, Sampler
from opd.types import Prompt, Rollout
from support.altered import train_altered
from support.chat_run import chat_run
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
    page.locator("#steps .chip").first.click()
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


def chat(page: Page) -> None:
    """The rollout whose answer is Arabic."""
    page.locator("#list .item").nth(1).click()


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


def shoot(browser: Browser, report: Path, act: Callable[[Page], None], shown: Sequence[str], **context: Any) -> bytes:
    """A part of a page, as wide as the page, with few colours; of a small screen what is in view."""
    usual = {"viewport": {"width": WIDTH, "height": 2400}, "color_scheme": "light", "reduced_motion": "reduce"}
    page = browser.new_page(**{**usual, **context})
    page.goto(report.resolve().as_uri())
    act(page)
    if context:
        return few_colours(page.screenshot())
    page.evaluate("scrollTo(0, 0)")
    boxes = [box for where in shown if (box := page.locator(where).first.bounding_box())]
    top, bottom = min(b["y"] for b in boxes) - 8, max(b["y"] + b["height"] for b in boxes) + 16
    left = 0 if len(shown) > 1 or shown[0] == "#short" else min(b["x"] for b in boxes) - 16
    width = min(WIDTH - left, max(b["x"] + b["width"] for b in boxes) + 16 - left)
    picture = page.screenshot(clip={"x": left, "y": max(top, 0), "width": width, "height": bottom - max(top, 0)})
    page.close()
    return few_colours(picture)


def few_colours(picture: bytes) -> bytes:
    """The same picture with few colours."""
    small = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS).save(small, "PNG", optimize=True)
    return small.getvalue()


def shown_pages(runs: Path) -> dict[str, tuple[Path, Callable[[Page], None], Sequence[str], Mapping[str, Any]]]:
    """Pages that are shown as they are: a conversation, two runs, a small screen, a pipeline."""
    compared = {**SHORT, "optimizer.steps": 30, "lora.rank": 16, "optimizer.lr": 2e-3, "out": str(runs / "lora")}
    if not (runs / "lora" / "result.json").exists():
        opd.train("hint", compared)
    if not (runs / "chat" / "out" / "result.json").exists():
        chat_run(runs / "chat")
    if not (runs / "pipeline" / "pipeline.json").exists():
        opd.pipeline("examples/pipeline-small.yaml", {"out": str(runs / "pipeline")})
    both = write_page([runs / "hint", runs / "lora"], runs / "both.html")
    small = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
    return {
        "chat": (write_report(runs / "chat" / "out"), chat, ("#text article",), {}),
        "compare": (both, tokens_stay, ("#short",), {}),
        "phone": (runs / "hint" / "report.html", worst, ("html",), small),
        "pipeline": (runs / "pipeline" / "report.html", tokens_stay, ("#short", "#graph"), {}),
    }


def tokens_stay(page: Page) -> None:
    """Nothing is clicked."""


def save(title: str, picture: bytes) -> None:
    """Write a picture of the pages."""
    path = ASSETS / f"report-{title}.png"
    assert len(picture) < MOST, f"{path} would have {len(picture):,} bytes"
    path.write_bytes(picture)
    print(f"{path}  {len(picture):,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[*CASES, "pages"])
    parser.add_argument("--runs", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="opd-pictures-") as folder, sync_playwright() as playwright:
        runs = chosen.runs or Path(folder)
        wanted = [*CASES, "pages"] if not chosen.only else chosen.only
        names = [name for name in CASES if name in wanted or ("pages" in wanted and name == "hint")]
        reports = {name: made(name, CASES[name], runs) for name in names}
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        # The sandbox of the browser needs rights that containers do not have; the pages are our own.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, report in reports.items():
            for title, (act, shown) in CASES[name].shots.items():
                save(title, shoot(browser, report, act, shown))
        for title, (report, act, shown, context) in (shown_pages(runs) if "pages" in wanted else {}).items():
            save(title, shoot(browser, report, act, shown, **context))
        browser.close()


if __name__ == "__main__":
    main()
