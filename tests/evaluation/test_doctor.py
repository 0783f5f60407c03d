"""The doctor: bounded forward passes, memory settings, turn ends, and its warnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opd.api import examine
from opd.axes.base import Objects
from opd.config.read import read
from opd.config.run import RunConfig
from opd.language.run import LanguageRun
from opd.models import forward, packing
from support.models import make_model

SMALL = {"rollout.max_new_tokens": 48, "prompts.limit": 64}


@pytest.mark.slow
def test_rollouts_are_scored_in_batches_within_the_token_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    laid_out = packing.lay_out

    def recorded(model: Any, rows: Any) -> Any:
        tensors = laid_out(model, rows)
        sizes.append(tensors[0].numel())
        return tensors

    monkeypatch.setattr(forward, "lay_out", recorded)
    *_, whole, _, _ = [line for line in examine("opd", SMALL) if not line.startswith("WARNING")]
    assert len(sizes) == 2  # the teacher's pass and the student's
    sizes.clear()
    lines = list(examine("opd", {**SMALL, "teacher.max_tokens": 500}))
    assert len(sizes) > 4
    assert max(sizes) <= 500
    assert whole.startswith("signal")
    assert whole in lines


@pytest.mark.slow
def test_the_four_memory_settings_are_listed() -> None:
    settings = {"optimizer.micro_batch": 8, "teacher.max_tokens": 4096, "rollout.engine.max_rows": 32}
    (line,) = (line for line in examine("opd", {**SMALL, **settings}) if line.startswith("passes"))
    assert line == (
        "passes    student: 8 rollouts (optimizer.micro_batch); teacher: 4,096 tokens (teacher.max_tokens); "
        "decoding: 32 rows (rollout.engine.max_rows); evaluation: 16,384 tokens"
    )
    (line,) = (line for line in examine("opd", SMALL) if line.startswith("passes"))
    assert "student: all rollouts at once (optimizer.micro_batch, optimizer.micro_tokens)" in line
    settings = {"optimizer.micro_batch": 8, "optimizer.micro_tokens": 2000}
    (line,) = (line for line in examine("opd", {**SMALL, **settings}) if line.startswith("passes"))
    assert "student: 8 rollouts (optimizer.micro_batch), at most 2,000 tokens (optimizer.micro_tokens);" in line


def test_the_turn_end_is_shown() -> None:
    assert "turn end  '<|im_end|>'" in list(examine("opd", SMALL))


def test_rollouts_that_never_end_are_a_warning() -> None:
    lines = list(examine("opd", {**SMALL, "rollout.max_new_tokens": 2}))
    assert any(line.startswith("WARNING   no rollout ended before its limit") for line in lines)
    assert not any("no rollout ended" in line for line in examine("opd", SMALL))


def test_rollouts_without_a_target_are_a_warning_and_no_error(tmp_path: Path) -> None:
    tree: dict[str, Any] = {
        "student": "s",
        "prompts": {"path": "p.jsonl"},
        "teacher": {"weights": "frozen", "view": "hint"},
        "rollout": {"prompts_per_step": 4, "max_new_tokens": 4},
        "log": [],
        "out": str(tmp_path / "out"),
    }
    config = read(tree)
    assert isinstance(config, RunConfig)
    prompts = [{"prompt": f"{a} {b}"} for a in "abcd" for b in "efgh"]
    lines = list(LanguageRun.load(config, Objects(student=make_model(0), prompts=prompts)).findings())
    assert lines[-1].startswith("WARNING   no token of these rollouts has a target: teacher.view=hint, and no hint")
