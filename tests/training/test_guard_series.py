"""The guards on recorded runs (``benchmarks/guards.py --write``): no recipe is stopped, every planted collapse is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opd.config.read import recipe_names
from opd.types import Term
from support.guard_replay import by_evaluations, by_rollouts

RUNS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parents[1] / "support" / "guard_series.json").read_text())
RECIPES = [name for name in RUNS if name.startswith("recipe-")]
PLANTED = [name for name in RUNS if name.startswith("planted-")]
TERMS = [Term("distill", "distill", None, None, None)]  # type: ignore[arg-type]

SILENT = {"planted-a-biased-teacher-0", "planted-live-teacher-no-anchor-0"}
"""Collapses that rollouts without rewards do not show: the student comes to equal its teacher."""


def test_dips_and_collapses_are_among_the_recordings() -> None:
    assert len(RECIPES) == 3 * len(recipe_names())
    assert len(PLANTED) >= 12
    assert by_evaluations(RUNS["recipe-gold-0"]).fell is not None
    assert by_evaluations(RUNS["recipe-prefix-0"]).fell is not None
    assert by_evaluations(RUNS["recipe-kdrl-1"]).fell is not None


@pytest.mark.parametrize("name", RECIPES)
def test_a_healthy_run_is_not_stopped(name: str) -> None:
    assert by_evaluations(RUNS[name]).stopped is None
    assert by_rollouts(RUNS[name], TERMS).stopped is None
    assert by_rollouts(RUNS[name], TERMS, rewarded=False).stopped is None


@pytest.mark.parametrize("name", PLANTED)
def test_a_collapse_is_stopped_at_the_second_evaluation_that_shows_it_and_the_best_weights_are_kept(name: str) -> None:
    run = RUNS[name]
    seen = by_evaluations(run)
    assert seen.fell is not None
    assert seen.stopped == seen.fell + 5
    accuracies = {step: metrics["accuracy"] for step, metrics in run["evals"] if step <= seen.stopped}
    assert accuracies[seen.kept] == max(accuracies.values())


@pytest.mark.parametrize("name", PLANTED)
def test_rollouts_alone_show_a_collapse(name: str) -> None:
    seen = by_rollouts(RUNS[name], TERMS)
    assert seen.stopped is not None
    assert seen.kept < seen.stopped
    assert (by_rollouts(RUNS[name], TERMS, rewarded=False).stopped is None) == (name in SILENT)
