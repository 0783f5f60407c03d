"""Whole runs: deterministic, in micro-batches, and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import opd
from opd.axes.base import Objects
from opd.config.read import read
from opd.diffusion.models import load
from opd.diffusion.run import DenoisingRun
from opd.errors import CheckpointError, ConfigError
from opd.loop import Loop
from opd.output.run_log import RunLog
from support.families import read_denoising
from support.interrupt import Interrupt
from support.slow import slow_but
from support.tiny_pipelines import prompt_rows, run_tree, write_rows

LORA = {"rank": 2, "targets": ["to_q", "to_v"]}


def weights(out: Path) -> dict[str, Tensor]:
    return dict(load(str(out), key="student").model.named_parameters())


def metrics(out: Path) -> list[dict[str, float]]:
    """The metrics of a run's steps, without times."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row["train"].items() if not k.endswith("_s")} for row in rows if "train" in row]


def same(one: Path, other: Path) -> bool:
    expected = weights(one)
    return metrics(one) == metrics(other) and all(torch.equal(p, expected[n]) for n, p in weights(other).items())


def loop_of(tree: dict[str, Any], tmp_path: Path) -> tuple[DenoisingRun, Loop]:
    run = DenoisingRun.load(read_denoising(tree), Objects())
    return run, run.assemble(RunLog(tmp_path / "metrics.jsonl", [], []))


def gradient(tree: dict[str, Any], tmp_path: Path) -> Tensor:
    """The first step's gradient before clipping."""
    _, loop = loop_of(tree, tmp_path)
    caught: list[Tensor] = []

    def instead(step: int, loss: float, *, scale: float = 1.0) -> float:
        grads = [p.grad for p in loop.optimizer.named.values()]
        caught.append(torch.cat([g.flatten() for g in grads if g is not None]))
        return 1.0

    loop.optimizer.step = instead  # type: ignore[method-assign]
    loop._step(0)
    return caught[0]


@pytest.mark.parametrize("kind", slow_but(["sd3", "ddim", "dit"], "sd3"))
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_add_up_to_one_batch(tmp_path: Path, folder: Any, kind: str, size: int) -> None:
    tree = run_tree(
        tmp_path / "out", folder(kind), teacher={"model": folder(kind, 1)}, rollout={"rollouts_per_prompt": 2}
    )
    whole = gradient(tree, tmp_path)
    parts = gradient(tree | {"optimizer": {"micro_batch": size}}, tmp_path)
    assert whole.norm() > 0
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))


def test_checkpointed_activations_have_the_same_gradient(tmp_path: Path, folder: Any) -> None:
    for kind in ("sd3", "ddim"):
        tree = run_tree(tmp_path / "out", folder(kind), teacher={"model": folder(kind, 1)})
        whole = gradient(tree, tmp_path)
        saved = gradient(tree | {"optimizer": {"gradient_checkpointing": True}}, tmp_path)
        torch.testing.assert_close(saved, whole, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))


@pytest.mark.slow
def test_a_run_is_deterministic_in_its_seed(tmp_path: Path, folder: Any) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tree = run_tree(tmp_path / name, folder("sd3"), teacher={"model": folder("sd3", 1)}, seed=seed)
        opd.train(tree, {"rollout.noise": 0.7, "lora": LORA})
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


RUNS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "model": lambda folder: {"teacher": {"model": folder("sd3", 1)}},
    "lora": lambda folder: {"teacher": {"model": folder("sd3", 1)}, "lora": LORA},
    "ema": lambda folder: {
        "teacher": {"weights": {"type": "ema", "decay": 0.5}, "guidance": 3.0},
        "loss": {"anchor": 0.1},
    },
    "lora and ema": lambda folder: {
        "teacher": {"weights": {"type": "ema", "decay": 0.5}, "guidance": 3.0},
        "lora": LORA,
        "rollout": {"noise": 0.7},
    },
}


@pytest.mark.parametrize("at", slow_but([1, 3], 3))
@pytest.mark.parametrize(
    "what", [pytest.param(name, marks=pytest.mark.slow if name in ("lora", "ema") else ()) for name in RUNS]
)
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path: Path, folder: Any, what: str, at: int) -> None:
    def go(out: Path, **more: Any) -> opd.Result:
        tree = run_tree(out, folder("sd3"), optimizer={"steps": 4}, checkpoint={"every": 2}, **RUNS[what](folder))
        return opd.train(tree | {"prompts": {"path": prompts}}, **more)

    prompts = write_rows(tmp_path / "prompts.jsonl", prompt_rows())
    go(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", callbacks=[Interrupt(at)])
    go(tmp_path / "cut", resume=True)
    assert len(metrics(tmp_path / "cut")) == 4
    assert same(tmp_path / "whole", tmp_path / "cut")
    whole, cut = (load_file(tmp_path / name / "checkpoints/000004/rng.safetensors") for name in ("whole", "cut"))
    assert torch.equal(whole["torch"], cut["torch"])


def test_half_precision_forward_passes_train(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"model": folder("sd3", 1)}, dtype="bfloat16")
    opd.train(tree)
    assert all(p.dtype == torch.float32 for p in weights(tmp_path / "out").values())


def test_an_occupied_folder_and_a_changed_run_are_refused(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(tmp_path / "out", folder("ddim"), teacher={"model": folder("ddim", 1)})
    opd.train(tree)
    with pytest.raises(ConfigError, match="already holds a run"):
        opd.train(tree)
    with pytest.raises(CheckpointError, match="rollout.steps: .* was started with 3, and it is 2 now"):
        opd.train(tree, {"rollout.steps": 2}, resume=True)


def test_the_resolved_run_file_is_saved(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(tmp_path / "out", folder("ddim"), teacher={"model": folder("ddim", 1)})
    opd.train(tree)
    saved = json.loads((tmp_path / "out" / "run.json").read_text())
    assert read(saved).model_dump(mode="json") == saved
