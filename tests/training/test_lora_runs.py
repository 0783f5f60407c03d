"""Whole runs with an adapter: killed and resumed, rolled back, extrapolated, and as stages of a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import opd
from opd.models.adapters import merged
from opd.models.loading import load
from opd.pipelines.run import pipeline
from support.interrupt import Interrupt
from support.models import make_model
from support.small_runs import PROMPTS, small_run
from support.small_runs import merged as with_changes
from support.stages import InProcess

ANSWERED = [{**prompt, "answer": "a"} for prompt in PROMPTS]

RUNS: dict[str, dict[str, Any]] = {
    "another teacher": {"lora": {"rank": 2, "dropout": 0.1}},
    "frozen": {"teacher": {"weights": "frozen", "view": "privileged"}, "loss": {"anchor": 0.1}},
    "ema": {"teacher": {"weights": {"type": "ema", "decay": 0.5}, "view": "privileged"}},
    "rolled back": {
        "teacher": {"weights": "live", "view": "privileged"},
        "optimizer": {"lr": 1.0, "steps": 8},
        "guards": {"recover": {"thresholds": {"entropy_collapsed": 0.5, "kl_exploded": 1.01}}},
    },
    "extrapolated": {"experimental": {"extrapolate": {"prompts": 8}}, "optimizer": {"steps": 5}},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_model(0).save(folder / "student")
    make_model(1).save(folder / "teacher")
    return folder


def train(out: Path, models: Path, changes: dict[str, Any], **arguments: Any) -> opd.Result:
    tree = small_run(out, student=str(models / "student"), teacher={"model": str(models / "teacher")})
    tree |= {"lora": {"rank": 2}, "checkpoint": {"every": 2}}
    if "weights" in changes.get("teacher", {}):
        tree["teacher"] = {}
    return opd.train(with_changes(tree, changes), prompts=ANSWERED, **arguments)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n != "ema" else ()) for n in RUNS])
def test_a_killed_run_resumes_to_the_same_bits(name: str, models: Path, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", models, RUNS[name])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", models, RUNS[name], callbacks=[Interrupt(whole.steps - 1)])
    resumed = train(tmp_path / "cut", models, RUNS[name], resume=True)
    assert (resumed.events, resumed.steps, resumed.tokens) == (whole.events, whole.steps, whole.tokens)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (resumed.out / file).read_bytes() == (whole.out / file).read_bytes()
    kinds = {event["kind"] for event in whole.events}
    assert kinds >= {"rolled back": {"rollback"}, "extrapolated": {"extrapolation"}}.get(name, set())


def test_checkpoints_hold_the_adapter_alone(models: Path, tmp_path: Path) -> None:
    changes = RUNS["ema"] | {"experimental": RUNS["extrapolated"]["experimental"]}
    result = train(tmp_path / "out", models, changes)
    files = sorted((result.out / "checkpoints").glob("*/*.safetensors"))
    assert {file.stem for file in files} >= {"adapter_model", "optimizer", "average", "extrapolation"}
    for file in files:
        assert file.stem == "rng" or all(".lora_" in name for name in load_file(file))


# ------------------------------------------------------------------------------------------------ in a pipeline


def stages(out: Path, models: Path) -> dict[str, Any]:
    prompts = models / "p.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"a b {word}"}) for word in "cdefgh"))
    run: dict[str, Any] = {
        "run": "opd",
        "student": str(models / "student"),
        "teacher": {"model": str(models / "teacher")},
        "prompts": {"path": str(prompts)},
        "lora": {"rank": 2},
        "rollout": {"prompts_per_step": 4, "max_new_tokens": 6},
        "optimizer": {"steps": 2, "lr": 1e-2},
        "eval": {"prompts": None},
        "log": [],
    }
    return {
        "out": str(out),
        "stages": {
            "one": {**run, "seed": 1},
            "two": {**run, "seed": 2},
            "on": {**run, "student": "stage:one", "teacher": {"model": "stage:two"}},
            "mean": {"average": ["stage:one", "stage:two", str(models / "student")]},
        },
    }


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opd.pipelines.run.Worker", InProcess)


@pytest.mark.usefixtures("in_process")
@pytest.mark.slow
def test_stages_train_adapters_start_from_them_and_average_them(models: Path, tmp_path: Path) -> None:
    result = pipeline(stages(tmp_path / "out", models))
    assert {stage.state for stage in result.stages.values()} == {"done"}
    again = pipeline(stages(tmp_path / "out", models))
    assert {stage.state for stage in again.stages.values()} == {"unchanged"}
    parts = [merged(load(str(tmp_path / "out" / name), key="k").model) for name in ("one", "two")]
    parts.append(load(str(models / "student"), key="k").model)
    mean = load_file(tmp_path / "out" / "mean" / "model.safetensors")
    for name, tensor in mean.items():
        expected = torch.stack([dict(p.named_parameters())[name].double() for p in parts]).mean(0)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
    first, after = (load_file(tmp_path / "out" / name / "adapter_model.safetensors") for name in ("one", "on"))
    assert first.keys() == after.keys()
    assert not any(torch.equal(first[name], after[name]) for name in first)
