"""A refactor leaves every recipe's first steps as they were."""

import json
from pathlib import Path

import pytest

from golden.record import FOLDER, machine, record
from opd.config.read import recipe_names
from support.slow import slow_but

QUICK = ("hint", "opd", "grpo", "tml", "gkd", "gold", "sdpo", "diffusion-opd")
"""Recipes with a signal, view or family of their own each."""


@pytest.mark.parametrize("name", slow_but(recipe_names(), *QUICK))
def test_first_steps_are_as_recorded(name: str, tmp_path: Path) -> None:
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    now = record(name, tmp_path)
    assert now["tokens"] == golden["tokens"]
    if golden["machine"] == machine():
        assert now["losses"] == golden["losses"]
        assert now["weights"] == golden["weights"]
    else:  # another processor rounds in another order
        assert now["losses"] == pytest.approx(golden["losses"], rel=1e-3, abs=1e-5)
