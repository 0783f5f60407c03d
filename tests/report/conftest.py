"""Recorded runs of bundled models, shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

import opd

SMALL = {"eval.every": 2, "eval.prompts.limit": 24, "eval.diagnostics": 8, "rollout.prompts_per_step": 16, "log": []}


@pytest.fixture(scope="session")
def hint_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps with hints, three evaluations."""
    out = tmp_path_factory.mktemp("hint") / "run"
    opd.train("hint", {**SMALL, "optimizer.steps": 4, "out": str(out)})
    return out


@pytest.fixture(scope="session")
def math_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps toward a stronger model with the student's input."""
    out = tmp_path_factory.mktemp("math") / "run"
    opd.train("opd", {**SMALL, "optimizer.steps": 2, "save.dtype": "float32", "out": str(out)})
    return out


@pytest.fixture(scope="session")
def experts_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step toward two teachers of one domain; the gate refuses one of them."""
    out = tmp_path_factory.mktemp("experts") / "run"
    models = {name: {"model": f"nano/{name}", "domains": ["math"]} for name in ("math-teacher", "math-biased")}
    several = {"teacher.models": models, "teacher.model": None, "prompts.domain": "math", "eval.prompts.domain": "math"}
    opd.train(
        "opd",
        {**SMALL, **several, "teacher.gate": {}, "experimental.conflict": True, "optimizer.steps": 1, "out": str(out)},
    )
    return out


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a second run from its model, an evaluation of both, and a third run that fails at the start."""
    out = tmp_path_factory.mktemp("pipeline") / "out"
    small = {**SMALL, "run": "opd", "optimizer.steps": 2, "eval.prompts.limit": 8, "eval.diagnostics": 0}
    scores = {"eval": ["stage:two", "nano/math-base"], "prompts": {"task": "math", "split": "test", "limit": 8}}
    broken = {**small, "student": "stage:one", "prompts.limit": 4}  # fewer than one batch
    stages = {"one": small, "two": {**small, "student": "stage:one"}, "three": broken, "scores": scores}
    opd.pipeline({"out": str(out), "stages": stages})
    return out
