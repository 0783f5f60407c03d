"""The rollout in the terminal at an evaluation."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

import opd
from opd.output.terminal import run_display
from opd.report.files import ROLLOUTS, read_rollouts
from opd.report.terminal import SHADES, worst_rollout


def test_the_token_with_the_largest_loss_has_the_strongest_colour(hint_run: Path) -> None:
    rows = [r for r in read_rollouts(hint_run / ROLLOUTS) if (r["step"], r["of"]) == (0, "eval")]
    worst = max(rows, key=lambda row: max(row["terms"][0]["loss"], default=0.0))
    term = worst["terms"][0]
    position = term["position"][term["loss"].index(max(term["loss"]))]
    shown = worst_rollout(hint_run / ROLLOUTS, 0)
    assert shown is not None
    assert shown.plain == f"{worst['prompt']}  {''.join(worst['text'])}"
    before = len(worst["prompt"]) + 2 + len("".join(worst["text"][:position]))
    style = next(span.style for span in shown.spans if span.start == before)
    assert style == next(shade for least, shade in SHADES if term["loss"][position] >= least)
    inserted = next(p for p in range(len(worst["text"])) if p not in worst["own"])
    start = len(worst["prompt"]) + 2 + len("".join(worst["text"][:inserted]))
    assert next(span.style for span in shown.spans if span.start == start) == "italic"


def test_without_recorded_losses_no_rollout_is_shown(hint_run: Path, tmp_path: Path) -> None:
    assert worst_rollout(hint_run / ROLLOUTS, 1) is None
    assert worst_rollout(tmp_path / "none.jsonl", 0) is None


def test_a_terminal_shows_the_rollout_and_a_log_does_not(tmp_path: Path) -> None:
    for terminal in (True, False):
        output = io.StringIO()
        console = Console(file=output, force_terminal=terminal, width=200)
        small = {
            "eval.prompts.limit": 16,
            "eval.diagnostics": 0,
            "rollout.prompts_per_step": 8,
            "optimizer.steps": 1,
            "log": [],
        }
        out = str(tmp_path / str(terminal))
        opd.train("hint", {**small, "out": out}, callbacks=[run_display(console)])
        assert ("tools/test/" in output.getvalue()) == terminal
