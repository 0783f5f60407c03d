"""A run whose servers fail at random leaves the weights of a run whose servers do not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import opd
from opd.axes.views.plain import Plain
from opd.errors import CheckpointError
from opd.models.loading import load
from support.models import make_model
from support.served import FAULTS, Teacher
from support.small_runs import PROMPTS, small_run

QUICK = sorted(FAULTS.keys() - {"slow", "drips"})
"""Faults that are seen at once; those of time are tried by themselves."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Teacher]:
    make_model(1, layers=3, hidden=48).save(tmp_path / "teacher")
    with Teacher({"t": load(str(tmp_path / "teacher"), key="t")}) as running:
        yield running


def train(folder: Path, server: Teacher, name: str, *, resume: bool = False, **changes: Any) -> bytes:
    served = {"url": server.url, "sequences": 2, "timeout": 1, "wait": 30}
    teacher = {"model": str(folder / "teacher"), "served": served}
    tree = small_run(folder / name, teacher=teacher, report=None, **changes)
    opd.train(tree, student=make_model(0), prompts=PROMPTS, resume=resume)
    return (folder / name / "model.safetensors").read_bytes()


@pytest.mark.parametrize("loss", [{"divergence": "reverse_kl"}, {"divergence": "reverse_kl", "signal": "sampled"}])
@pytest.mark.slow
def test_faults_at_random_change_no_bit(loss: Any, server: Teacher, tmp_path: Path) -> None:
    clean = train(tmp_path, server, "clean", loss=loss)
    draw = random.Random(5)
    server.faults.append("")  # that of the start
    server.faults.extend(draw.choice([*QUICK, *[""] * 10]) for _ in range(24))
    hit = sum(map(bool, server.faults))
    assert train(tmp_path, server, "hit", loss=loss) == clean
    told = (tmp_path / "hit" / "metrics.jsonl").read_text().count('"kind": "server"')
    assert told == hit - sum(map(bool, server.faults))
    assert told > 6


def test_a_teacher_that_was_exchanged_between_kill_and_resume_is_refused(server: Teacher, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optimizer": {"lr": 1e-2, "steps": 2}}
    train(tmp_path, server, "out", **changes)
    changes["optimizer"]["steps"] = 3
    server.stop()
    with (
        Teacher({"t": make_model(7, layers=3, hidden=48)}, port=server.port) as other,
        pytest.raises(CheckpointError, match=r"teacher\.model: its weights are not those"),
    ):
        train(tmp_path, other, "out", resume=True, **changes)


def test_asking_ahead_and_small_micro_batches_change_no_bit(
    server: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"optimizer": {"lr": 1e-2, "steps": 3, "micro_batch": 2}}
    ahead = train(tmp_path, server, "ahead", **changes)
    asked = server.asked.count("/pooling")
    monkeypatch.setattr(Plain, "alone", False)
    assert train(tmp_path, server, "waiting", **changes) == ahead
    assert server.asked.count("/pooling") == 2 * asked
