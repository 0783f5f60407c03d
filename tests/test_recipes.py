"""Every shipped recipe on the nano suite, with evaluations and a report: it runs, learns and stays finite.

All are slow together; tests/golden has the first steps of each.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import opd
from opd.config.read import read, recipe_names
from opd.errors import ConfigError


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_takes_two_steps(name: str, tmp_path: Path) -> None:
    config = read(name)
    prompts = config.eval.prompts
    assert prompts is not None
    few = [{**source.model_dump(), "limit": 8} for source in prompts.mix or (prompts,)]
    small: dict[str, Any] = {"optimizer.steps": 2, "rollout.prompts_per_step": 8, "eval.prompts": few, "log": []}
    if name == "lightning":
        small["rollout.source.prompts"] = 16  # prompts asked for before the first step
    small["out"] = str(tmp_path / "run")
    result = opd.train(name, small)
    assert result.steps == 2
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [row["train"] for row in rows if "train" in row]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in trained)


def test_an_outcome_without_a_checker_is_refused(tmp_path: Path) -> None:
    overrides: dict[str, Any] = {"out": str(tmp_path / "run"), "eval.prompts": None, "log": []}
    with pytest.raises(ConfigError, match=r"loss.signal=reward .* answer"):
        opd.train("grpo", overrides, prompts=[{"prompt": f"{n} + 1"} for n in range(20)])
