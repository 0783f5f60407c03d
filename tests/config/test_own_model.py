"""Recipes on a model of one's own: which settings apply, what says so, and the run file to begin from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import opd
from opd.config.own_model import settings_taken
from opd.config.read import read, recipe_names
from opd.config.run import RunConfig
from opd.models.bundled import BUNDLED, is_bundled
from opd.output.starter import starter
from opd.pipelines.config import read as read_pipeline
from opd.pipelines.graph import build
from support.command_line import command
from support.models import make_model
from support.small_runs import PROMPTS


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_settings_for_other_models_and_says_which_it_took(name: str) -> None:
    bundled, own = read(name), read(name, {"student": "/models/mine"})
    assert bundled.method
    assert own.method
    assert own.optimizer.lr < bundled.optimizer.lr
    assert (bundled.method.settings, own.method.settings) == ("bundled", "own model")
    assert own.optimizer.micro_batch
    assert "for bundled models" in settings_taken(bundled)
    assert f"for a model of your own: optimizer.lr={own.optimizer.lr}, " in settings_taken(own)
    assert "overridden" not in settings_taken(own)  # each value of the recipe is in the run file as it stands there


def test_an_override_and_a_run_file_beat_the_recipe(tmp_path: Path) -> None:
    own = read("opd", {"student": "/models/mine", "optimizer.lr": 1e-5, "rollout": {"max_new_tokens": 7}})
    assert (own.optimizer.lr, own.optimizer.micro_batch) == (1e-5, 4)
    assert isinstance(own, RunConfig)
    assert own.rollout.max_new_tokens == 7
    assert settings_taken(own).endswith("overridden: optimizer.lr=1e-05, rollout.max_new_tokens=7")
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(own.model_dump(mode="json") | {"student": "/models/other"}))
    assert read(file).optimizer.lr == 1e-5
    plain = tmp_path / "plain.yaml"
    plain.write_text("{student: /models/mine, prompts: p.jsonl, teacher: {model: t}, out: o}")
    assert settings_taken(read(plain)) == ""


def test_templates_that_bundled_models_were_trained_on_are_not_for_others() -> None:
    for name in ("opsd", "sdft", "sdpo"):
        before, after = (read(name, given).teacher.view.model_dump() for given in ({}, {"student": "/models/mine"}))
        assert before["template"] != after["template"]
        assert "\n" in after["template"]


def test_a_bundled_model_is_known_by_its_name_its_folder_and_its_runs(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "000002").mkdir(parents=True)
    (tmp_path / "run.json").write_text(json.dumps({"student": "nano/math-base"}))
    assert is_bundled("nano/math-base")
    assert is_bundled(str(BUNDLED / "math-base"))
    assert is_bundled(str(tmp_path))
    assert is_bundled(str(tmp_path / "checkpoints" / "000002"))
    (tmp_path / "run.json").write_text(json.dumps({"student": "Qwen/Qwen3-0.6B"}))
    assert not is_bundled(str(tmp_path))
    assert not is_bundled("Qwen/Qwen3-0.6B")
    assert not is_bundled(str(tmp_path.parent))


def test_a_student_from_python_is_one_s_own_unless_it_was_loaded_from_the_package(tmp_path: Path) -> None:
    few = {"optimizer.steps": 1, "rollout.prompts_per_step": 4, "rollout.max_new_tokens": 4, "log": [], "report": False}
    opd.train("opd", {**few, "out": str(tmp_path)}, student=make_model(0), teacher=make_model(1), prompts=PROMPTS)
    assert json.loads((tmp_path / "run.json").read_text())["optimizer"]["lr"] == 1e-6


@pytest.mark.parametrize(("model", "lr"), [("nano/math-base", 3e-3), ("/models", 1e-6)])
def test_a_stage_takes_the_settings_of_the_model_its_student_came_from(tmp_path: Path, model: str, lr: float) -> None:
    given = str(tmp_path) if model == "/models" else model
    first = {"run": "opd", "student": given, "teacher.model": given, "prompts": {"task": "math"}}
    tree = {"first": first, "then": {**first, "student": "stage:first"}}
    stages = build(read_pipeline({"out": str(tmp_path / "out"), "stages": tree}))
    assert [stage.settings["optimizer"]["lr"] for stage in stages.values()] == [lr, lr]


@pytest.mark.parametrize("name", recipe_names())
def test_the_run_file_to_begin_from_is_the_recipe_with_comments(name: str, tmp_path: Path) -> None:
    text = starter(name)
    tree = yaml.safe_load(text)
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    config = read(file)
    given = {
        "student": "STUDENT",
        "out": "runs/mine",
        "prompts": tree["prompts"],
        "eval.prompts": tree["eval"]["prompts"],
    }
    models = {f"teacher.{key}": tree["teacher"][key] for key in ("model", "models") if key in tree.get("teacher", {})}
    assert config == read(name, given | models).model_copy(update={"method": None})
    assert all("  # " in line or line.startswith("#") for line in text.splitlines()), text
    assert tree["optimizer"]["lr"] == config.optimizer.lr


def test_the_command_prints_yaml_and_axes(tmp_path: Path) -> None:
    printed = command("methods", "opd", "--yaml", cwd=tmp_path)
    assert printed.stdout == starter("opd")
    axes = command("methods", "--axes", cwd=tmp_path).stdout
    for word in ("loss.signal", "top_k", "teacher.view", "hint", "rollout.source", "total_variation", "live"):
        assert word in axes
    refused = command("methods", "--yaml", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--yaml needs a recipe's name. Fix" in refused.stderr
