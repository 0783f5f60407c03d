"""``opd doctor`` on denoising runs: a trial without a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opd.api import examine
from opd.errors import ConfigError
from support.tiny_pipelines import run_tree, write_rows


def test_a_valid_run_is_ready_and_nothing_is_written(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(
        tmp_path / "out", folder("sd3"), teacher={"model": folder("sd3", 1)}, loss={"anchor": 0.1}, lora={"rank": 2}
    )
    files = sorted(p for p in tmp_path.rglob("*"))
    lines = list(examine(tree))
    assert lines[-1] == "ready to train"
    text = "\n".join(lines)
    for word in ("student", "StableDiffusion3Pipeline", "teacher", "8 to train on", "24 states, aligned", "rollouts"):
        assert word in text
    assert sorted(p for p in tmp_path.rglob("*")) == files


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("ddim", {}),
        ("dit", {"rollout.noise": 0.5, "loss.step_weights": [1.0, 1.0, 0.0]}),
        ("sd", {"rollout.guidance": 2.0, "eval.prompts": "HELD_OUT"}),
    ],
)
def test_the_doctor_examines_every_kind_of_pipeline(
    tmp_path: Path, folder: Any, kind: str, overrides: dict[str, Any]
) -> None:
    tree = run_tree(tmp_path / "out", folder(kind), teacher={"model": folder(kind, 1)})
    changed = {k: tree["prompts"] if v == "HELD_OUT" else v for k, v in overrides.items()}
    assert list(examine(tree, changed))[-1] == "ready to train"


def test_the_doctor_examines_self_teachers_and_noised_images(tmp_path: Path, folder: Any) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    bare = [{"id": f"b{n}", "prompt": "blue"} for n in range(40)]
    shown = [{"id": "a", "prompt": "red", "image": "a.png"}]
    for rows in (shown + bare, bare + shown):  # wherever the one with an image stands
        path = write_rows(tmp_path / "p.jsonl", rows)
        tree = run_tree(
            tmp_path / "out", folder("sd3"), teacher={"weights": "ema", "view": "image"}, prompts={"path": path}
        )
        assert list(examine(tree))[-1] == "ready to train"
    tree = run_tree(tmp_path / "out", folder("sd3"), prompts={"path": path}, rollout={"source": "images"})
    tree |= {"teacher": {}, "loss": {"signal": "image", "divergence": "x0"}}
    assert list(examine(tree))[-1] == "ready to train"


def test_the_doctor_refuses_an_invalid_run(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"model": folder("sd3", 1)}, lora={"targets": ["nothing"]})
    with pytest.raises(ConfigError, match="lora.targets"):
        list(examine(tree))
