"""Whole runs of tiny real pipelines through ``opd.train``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import opd
from opd.axes.base import Objects
from opd.diffusion.folders import load_pipeline
from opd.diffusion.models import load, of_pipeline
from opd.diffusion.run import DenoisingRun
from opd.diffusion.sampler import DenoisingSampler
from opd.diffusion.schedules import schedule_of
from opd.diffusion.types import Trajectory
from opd.output.run_log import RunLog
from opd.types import Prompt
from support.families import read_denoising
from support.tiny_pipelines import KINDS, prompt_rows, run_tree

PROMPTS = [Prompt(id="a", text="big red circle", data={"label": 1}), Prompt(id="b", text="blue", data={"label": 3})]


def metrics(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["train"] for row in rows if "train" in row]


def drawn(pipeline: Any) -> torch.Tensor:
    """Clean latents of two prompts, always from the same noise."""
    model = of_pipeline(pipeline, source="s", key="student", text_tokens=0)
    schedule = schedule_of(model.pipeline.scheduler, steps=3)
    return torch.stack([t.latents_KX[-1] for t in DenoisingSampler(model, schedule).rollout(PROMPTS, 0)])


@pytest.mark.parametrize(("kind", "lora"), [*((kind, False) for kind in KINDS), ("sd3", True), ("sd", True)])
def test_every_kind_of_pipeline_trains_and_is_saved(tmp_path: Path, folder: Any, kind: str, lora: bool) -> None:
    adapter = {"lora": {"rank": 2, "targets": ["to_q", "to_k", "to_v"]}} if lora else {}
    tree = run_tree(tmp_path / "out", folder(kind), teacher={"model": folder(kind, 1)}, **adapter)
    result = opd.train(tree)
    assert result.steps == 2
    for step in metrics(result.out):
        assert math.isfinite(step["loss"])
        assert step["loss"] > 0
        assert step["grad_norm"] > 0
    before, after = drawn(load(folder(kind), key="s").pipeline), drawn(load(str(result.out), key="s").pipeline)
    assert not torch.equal(before, after)
    assert (result.out / "lora").is_dir() == lora


def test_objects_from_python_give_the_same_run_as_their_folders(tmp_path: Path, folder: Any) -> None:
    changes = {"rollout": {"prompts_per_step": 4, "steps": 3}, "eval": {}}
    named = run_tree(tmp_path / "named", folder("sd3"), teacher={"model": folder("sd3", 1)}, **changes)
    opd.train(named)
    given = {**named, "out": str(tmp_path / "given")}
    pipelines = {"student": load_pipeline(folder("sd3")), "teacher": load_pipeline(folder("sd3", 1))}
    opd.train(given, prompts=prompt_rows(), **pipelines)
    ours, theirs = (metrics(tmp_path / name) for name in ("given", "named"))
    assert [step["loss"] for step in ours] == [step["loss"] for step in theirs]


THEIRS: dict[str, dict[str, Any]] = {
    "sd3": {"sigmas": [1.0, 2 / 3, 1 / 3], "height": 8, "width": 8, "max_sequence_length": 0},
    "sd": {"height": 16, "width": 16},
}


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
@pytest.mark.parametrize("kind", THEIRS)
def test_the_saved_pipeline_generates_the_students_latents(
    tmp_path: Path, folder: Any, kind: str, lora: dict[str, int] | None
) -> None:
    tree = run_tree(tmp_path / "out", folder(kind), teacher={"model": folder(kind, 1)}, lora=lora)
    run = DenoisingRun.load(read_denoising(tree), Objects())
    loop = run.assemble(RunLog(tmp_path / "metrics.jsonl", [], []))
    loop._step(0)
    loop._step(1)
    run.student.save(tmp_path / "left")
    drawn = run.config.rollout.source.build(run).rollout(PROMPTS, 0)
    own = [trajectory for trajectory in drawn if isinstance(trajectory, Trajectory)]
    pipeline = load_pipeline(tmp_path / "left")
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        [p.text for p in PROMPTS],
        latents=torch.stack([t.latents_KX[0] for t in own]),
        num_inference_steps=3,
        guidance_scale=1.0,
        output_type="latent",
        **THEIRS[kind],
    ).images
    torch.testing.assert_close(theirs, torch.stack([t.latents_KX[-1] for t in own]), atol=1e-4, rtol=1e-4)


def test_a_collapse_stops_the_run_and_the_best_weights_are_kept(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"model": folder("sd3", 1)})
    tree["eval"] = {"prompts": tree["prompts"], "every": 1}
    result = opd.train(tree, {"optimizer.lr": 3.0, "optimizer.steps": 6})
    assert result.stopped_by == "collapse"
    assert result.steps < 9
    assert result.after == result.best == result.before
    before, after = drawn(load(folder("sd3"), key="s").pipeline), drawn(load(str(result.out), key="s").pipeline)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_student_approaches_its_teacher_on_held_out_prompts(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(tmp_path / "out", folder("ddim"), teacher={"model": folder("ddim", 1)})
    tree["eval"] = {"prompts": tree["prompts"], "every": 20}
    tree |= {"optimizer": {"lr": 1e-2, "steps": 12}, "loss": {"divergence": "velocity"}, "report": True}
    result = opd.train(tree)
    assert result.after["distance"] < 0.6 * result.before["distance"]
    assert "velocity" in (result.out / "README.md").read_text()


def test_a_teacher_that_is_not_finite_changes_no_weights(tmp_path: Path, folder: Any) -> None:
    teacher = load(folder("ddim", 1), key="t")
    with torch.no_grad():
        teacher.model.conv_out.bias.fill_(math.nan)
    teacher.save(tmp_path / "broken")
    tree = run_tree(tmp_path / "out", folder("ddim"), teacher={"model": str(tmp_path / "broken")})
    result = opd.train(tree)
    assert [event["kind"] for event in result.events] == ["non_finite"] * 2
    ours, start = load(str(result.out), key="s").model, load(folder("ddim"), key="s").model
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), start.parameters(), strict=True))
