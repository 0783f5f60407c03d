"""Runs in several processes: the same losses and gradients, one sentence for a failure, bit-equal resumption."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import opd
from opd.config.read import read
from opd.config.run import RunConfig
from opd.distributed import World, join
from opd.errors import ConfigError
from opd.language.divided import check_shard
from support.ranks import language_recipes, losses, read_back, run_recipe, start_ranks

JOBS: list[dict[str, Any]] = [{"recipe": name, "out": name} for name in language_recipes()] + [
    {"recipe": "opd", "out": "one prompt", "changes": {"rollout.prompts_per_step": 1}},
    {"recipe": "hint", "out": "three prompts", "changes": {"rollout.prompts_per_step": 3, "optimizer.micro_batch": 1}},
    {"recipe": "opd", "out": "hardest", "changes": {"experimental.hardest_tokens": {"share": 0.5, "by": "entropy"}}},
    {"recipe": "tml", "out": "by turns", "changes": {"loss.aggregate": "sequence"}},
    {"recipe": "opd", "out": "adaptive", "changes": {"experimental.curriculum": {}}},
    {"recipe": "opd", "out": "whole weights", "changes": {"optimizer.shard": False}},
    {"recipe": "hint", "out": "adapter", "changes": {"lora": {"rank": 4}}},
    {"recipe": "opsd", "out": "recomputed", "changes": {"optimizer.gradient_checkpointing": True}},
    {"recipe": "opd", "out": "averaged", "changes": {"teacher": {"weights": "ema"}, "loss.signal": "full"}},
]
"""Every language recipe; shares of a batch that are empty or uneven; weights and curricula that see the whole batch."""

RUN = {"student": "s", "prompts": {"path": "p.jsonl"}, "teacher": {"model": "t"}, "out": "o"}

LONGER = {"optimizer.steps": 4, "checkpoint.every": 2, "optimizer.schedule": "constant"}
AGAIN: list[dict[str, Any]] = [
    {"recipe": "opd", "out": "at once", "changes": LONGER},
    {"recipe": "opd", "out": "resumed", "changes": LONGER | {"optimizer.steps": 2}},
    {"recipe": "opd", "out": "resumed", "changes": LONGER, "resume": True},
]
"""The same run at once and in two goes."""


def finished(process: Popen[str]) -> str:
    """What a job that has to succeed wrote on stderr."""
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors[-3000:]
    return errors


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """All jobs in two processes, and in one."""
    folder = tmp_path_factory.mktemp("ranks")
    jobs = [{**job, "out": str(folder / "two" / job["out"])} for job in JOBS + AGAIN]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    ranks = start_ranks(2, "-m", "support.ranks", str(folder / "jobs.json"))
    for job in JOBS:
        run_recipe(job["recipe"], folder / "one" / job["out"], job.get("changes"))
    finished(ranks)
    return folder / "one", folder / "two"


@pytest.mark.slow
@pytest.mark.parametrize("name", [job["out"] for job in JOBS])
def test_two_processes_compute_what_one_does(name: str, both: tuple[Path, Path]) -> None:
    one, two = (losses(folder / name) for folder in both)
    assert [step["tokens"] for step in two] == [step["tokens"] for step in one]
    assert [step["loss"] for step in two] == pytest.approx([step["loss"] for step in one], abs=1e-5)
    shares = [{key: value for key, value in step.items() if key.endswith("_share")} for step in one]
    assert all(step.items() >= share.items() for step, share in zip(two, shares, strict=True))
    # The moving average of the clipped gradients, of which each counts a tenth.
    moments = [load_file(folder / name / "checkpoints/000003/optimizer.safetensors") for folder in both]
    assert moments[0].keys() == moments[1].keys()
    for key, value in moments[0].items():
        assert torch.allclose(moments[1][key], value, atol=1e-7, rtol=0), key


@pytest.mark.slow
def test_the_first_process_writes_an_ordinary_folder(both: tuple[Path, Path]) -> None:
    one, two = (folder / "opd" for folder in both)
    names = [sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) for out in (one, two)]
    assert names[0] == names[1]
    lines = [len((out / "metrics.jsonl").read_text().splitlines()) for out in (one, two)]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_a_resumed_run_of_two_processes_is_equal_to_the_last_bit(both: tuple[Path, Path]) -> None:
    _, two = both
    for name in ("model.safetensors", "checkpoints/000004/optimizer.safetensors"):
        assert (two / "resumed" / name).read_bytes() == (two / "at once" / name).read_bytes()


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_is_read_by_any_number(both: tuple[Path, Path], tmp_path: Path) -> None:
    out = both[1] / "opd"
    checkpoint = out / "checkpoints/000003"
    (tmp_path / "jobs.json").write_text(json.dumps([{"read": str(out), "to": str(tmp_path / "three.safetensors")}]))
    three = start_ranks(3, "-m", "support.ranks", str(tmp_path / "jobs.json"))
    read_back(out, tmp_path / "one.safetensors")
    finished(three)
    saved = load_file(checkpoint / "model.safetensors") | load_file(checkpoint / "optimizer.safetensors")
    for number in ("one", "three"):
        read = load_file(tmp_path / f"{number}.safetensors")
        assert read.keys() == saved.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in saved.items())
    one, third = (json.loads((tmp_path / f"{n}.json").read_text())["bytes"] for n in ("one", "three"))
    assert third < 0.4 * one  # weights and moments of one process


@pytest.mark.parametrize(
    ("shard", "size", "keys", "groups"),
    [
        ("auto", 1, {}, 0),
        ("auto", 8, {}, 1),
        (True, 8, {}, 1),
        ({"replicate": 2}, 8, {}, 2),
        (False, 8, {}, 0),
        ("auto", 8, {"lora": {"rank": 4}}, 0),
        ("auto", 8, {"experimental": {"extrapolate": {}}}, 0),
    ],
)
def test_what_is_divided(shard: Any, size: int, keys: dict[str, Any], groups: int) -> None:
    config = read({**RUN, **keys, "optimizer": {"shard": shard}})
    assert isinstance(config, RunConfig)
    assert check_shard(config, size, adapter=config.lora is not None) == groups


@pytest.mark.parametrize(
    ("shard", "size", "keys", "sentence"),
    [
        (True, 1, {}, "optimizer.shard: there is one process, which has all weights. Fix: start several with torchrun"),
        (True, 2, {"lora": {"rank": 4}}, "optimizer.shard: weights cannot be divided with lora. Fix: set optimizer"),
        ({"replicate": 3}, 8, {}, "optimizer.shard.replicate: 8 processes cannot be divided into 3 groups"),
        ({"replicate": 2}, 2, {}, "optimizer.shard.replicate: 2 processes cannot be divided into 2 groups"),
    ],
)
def test_what_cannot_be_divided_is_refused(shard: Any, size: int, keys: dict[str, Any], sentence: str) -> None:
    config = read({**RUN, **keys, "optimizer": {"shard": shard}})
    assert isinstance(config, RunConfig)
    with pytest.raises(ConfigError) as raised:
        check_shard(config, size, adapter=config.lora is not None)
    assert str(raised.value).startswith(sentence)


def test_a_run_of_one_process_is_refused_in_several(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun: a diffusion run takes one process, not 2. Fix: start it without"):
        opd.train("diffusion-opd", {"out": str(tmp_path / "out")})
    with pytest.raises(ConfigError, match="torchrun: opd pipeline takes one process, not 2"):
        opd.pipeline({"out": str(tmp_path / "all"), "stages": {}})
    with pytest.raises(ConfigError, match="device: torchrun gives each rank a GPU, and 'cuda:1' is one for all"):
        join("cuda:1")
    monkeypatch.setenv("OPD_RANK_TIMEOUT", "soon")
    with pytest.raises(ConfigError, match="OPD_RANK_TIMEOUT: 'soon' is no number"):
        join("cpu")


def test_one_process_divides_nothing() -> None:
    world = World()
    rows = torch.ones(2, 3)
    assert world.rows(rows) is rows
    assert world.gather("here", "anything") == ["here"]
    assert list(world.own([])) == []
    assert world.weights(torch.nn.Linear(2, 2)) is None


def command(out: Path, *keys: str) -> list[str]:
    """A run whose rewards come from ``support.rank_faults``."""
    small = ["rollout.prompts_per_step=4", "prompts.limit=64", "eval.prompts=null", "report=false", "log=[]"]
    return ["-m", "opd", "train", "grpo", *small, f"out={out}", *keys, "--quiet"]


def errors_of(text: str) -> list[str]:
    """The sentences that opd printed; torchrun adds lines of its own."""
    return [line for line in text.splitlines() if line.startswith("error:")]


@pytest.mark.slow
def test_an_error_of_one_rank_ends_the_job_with_its_sentence(tmp_path: Path) -> None:
    job = start_ranks(2, *command(tmp_path / "out", "prompts.reward=support.rank_faults:rank_1_fails"))
    _, errors = job.communicate(timeout=100)
    assert len(errors_of(errors)) == 1, errors
    (sentence,) = errors_of(errors)
    assert sentence.startswith("error: rank 1: prompts.reward: support.rank_faults:rank_1_fails raised ValueError")
    assert job.returncode


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_with_the_exchange_that_it_misses(tmp_path: Path) -> None:
    keys = command(tmp_path / "out", "prompts.reward=support.rank_faults:rank_1_waits")
    job = start_ranks(2, *keys, env={"OPD_RANK_TIMEOUT": "5"})
    _, errors = job.communicate(timeout=100)
    assert len(errors_of(errors)) == 1, errors
    (sentence,) = errors_of(errors)
    assert sentence.startswith("error: rank 1 did not come to 'rollouts' within 5 s; the last exchange")


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_within_a_minute(tmp_path: Path) -> None:
    job = start_ranks(
        2, *command(tmp_path / "out", "optimizer.steps=5000", "prompts.reward=support.rank_faults:length")
    )
    until = time.monotonic() + 60
    while not (tmp_path / "out/metrics.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.2)
    os.kill(rank_process(job, 1), signal.SIGKILL)
    killed = time.monotonic()
    _, errors = job.communicate(timeout=100)
    assert time.monotonic() - killed < 60
    assert len(errors_of(errors)) == 1, errors
    (sentence,) = errors_of(errors)
    assert sentence.startswith("error: rank 1 has died or cannot be reached")


@pytest.mark.slow
def test_a_signal_to_all_ranks_saves_a_checkpoint_that_both_agree_on(tmp_path: Path) -> None:
    keys = command(tmp_path / "out", "optimizer.steps=5000", "prompts.reward=support.rank_faults:length")
    job = start_ranks(2, *keys)
    metrics, until = tmp_path / "out/metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and '"train"' in metrics.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=100)
    assert "interrupted by SIGTERM after step" in errors
    assert "go on with --resume" in errors
    assert not errors_of(errors)
    assert list((tmp_path / "out/checkpoints").glob("0*/interrupted"))


def rank_process(job: Popen[str], rank: int) -> int:
    """The process id of a rank, a child of torchrun."""
    for number in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{number}/environ").read_text().split("\0"):
            return int(number)
    raise AssertionError(f"torchrun has no rank {rank}")
