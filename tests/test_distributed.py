"""Runs in several processes: the same losses and gradients, one sentence for a failure, bit-equal resumption."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

import opd
from opd.config.read import read
from opd.config.run import RunConfig
from opd.distributed import World, join
from opd.errors import ConfigError
from opd.language.shard import check_shard, join_ranks
from opd.models.adapters import new_adapter
from opd.models.copies import frozen_copy
from opd.models.language import LanguageModel
from opd.models.loading import load
from support.models import make_model
from support.ranks import (
    Forked,
    command_line,
    decode,
    language_recipes,
    load_in_parts,
    losses,
    read_back,
    run_jobs,
    start_ranks,
)

TEACHERS = {name: {"model": f"nano/{name}", "domains": ["math"]} for name in ("math-teacher", "math-biased")}
ADAPTERS = {name: {"model": f"{{models}}/{name}", "domains": ["math"]} for name in ("adapter-0", "adapter-1")}

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
    {"recipe": "opd", "out": "several teachers", "changes": {"teacher": {"models": TEACHERS}}},
    {"recipe": "opd", "out": "adapters teach", "changes": {"teacher": {"models": ADAPTERS}}},
    {"recipe": "opd", "out": "untied", "changes": {"student": "{models}/student", "teacher.model": "{models}/teacher"}},
]
"""Every language recipe; shares of a batch that are empty or uneven; weights and curricula that see the whole batch.

The bundled models have tied heads. ``hint`` has a frozen copy that teaches and anchors.
"""

RUN = {"student": "s", "prompts": {"path": "p.jsonl"}, "teacher": {"model": "t"}, "out": "o"}

LONGER = {"optimizer.steps": 4, "checkpoint.every": 2, "optimizer.schedule": "constant"}
EVALUATED = {
    "eval.prompts": {"task": "math", "split": "test", "limit": 6},
    "eval.every": 2,
    "eval.diagnostics": 3,
    "eval.max_new_tokens": 24,
    "report": {"prompts": 2},
}
AGAIN: list[dict[str, Any]] = [
    {"recipe": "opd", "out": "at once", "changes": LONGER},
    {"recipe": "opd", "out": "resumed", "changes": LONGER | {"optimizer.steps": 2}},
    {"recipe": "opd", "out": "resumed", "changes": LONGER, "resume": True},
    {"recipe": "opd", "out": "evaluated", "changes": EVALUATED},
]
"""The same run at once and in two goes; and one with evaluations and a report."""

GROUPS: list[dict[str, Any]] = [
    {"recipe": name, "out": f"{name} in groups", "changes": {"optimizer.shard": {"replicate": 2}}}
    for name in ("opd", "hint")
]
"""For four processes."""


def finished(process: Popen[str]) -> str:
    """What a job that has to succeed wrote on stderr."""
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors[-3000:]
    return errors


def placed(jobs: list[dict[str, Any]], folder: Path, models: Path) -> list[dict[str, Any]]:
    """The jobs with paths in place of names."""
    return [
        {**json.loads(json.dumps(job).replace("{models}", str(models))), "out": str(folder / job["out"])}
        for job in jobs
    ]


def make_models(folder: Path) -> Path:
    """A student and a teacher whose output heads are not their embeddings, and two adapters of the bundled teacher."""
    tokenizer = load("nano/math-base", key="student").tokenizer
    for seed, name in enumerate(("student", "teacher")):
        vocab, hidden = len(tokenizer) + 5, 32 + 16 * seed
        model = make_model(seed, tokenizer=tokenizer, vocab=vocab, tied=False, positions=512, hidden=hidden)
        model.save(folder / name)
    for seed in range(2):
        torch.manual_seed(seed)
        base = load("nano/math-teacher", key="teacher")
        adapter = dataclasses.replace(base, model=new_adapter(base.model, rank=2, alpha=4))
        for name, parameter in adapter.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        adapter.save_weights(folder / f"adapter-{seed}")
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """All jobs in two processes, and in one. Tests in several workers share them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ranks"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            models = make_models(tmp_path_factory.mktemp("models"))
            file = tmp_path_factory.mktemp("jobs") / "jobs.json"
            file.write_text(json.dumps(placed(JOBS + AGAIN, folder / "two", models)))
            ranks = start_ranks(2, "-m", "support.ranks", str(file))
            run_jobs(placed(JOBS, folder / "one", models))
            finished(ranks)
    return folder / "one", folder / "two"


def check_same(one: Path, several: Path) -> None:
    """Losses within 1e-5, shares of tokens and, of the gradients' moving average, 1e-7: each counts a tenth."""
    first, other = losses(one), losses(several)
    assert [step["tokens"] for step in other] == [step["tokens"] for step in first]
    assert [step["loss"] for step in other] == pytest.approx([step["loss"] for step in first], abs=1e-5)
    shares = [{key: value for key, value in step.items() if key.endswith("_share")} for step in first]
    assert all(step.items() >= share.items() for step, share in zip(other, shares, strict=True))
    moments = [load_file(out / "checkpoints/000003/optimizer.safetensors") for out in (one, several)]
    assert moments[0].keys() == moments[1].keys()
    for key, value in moments[0].items():
        assert torch.allclose(moments[1][key], value, atol=1e-7, rtol=0), key


@pytest.mark.slow
@pytest.mark.parametrize("name", [job["out"] for job in JOBS])
def test_two_processes_compute_what_one_does(name: str, both: tuple[Path, Path]) -> None:
    check_same(both[0] / name, both[1] / name)


@pytest.mark.slow
def test_two_groups_of_two_processes_compute_what_one_does(both: tuple[Path, Path], tmp_path: Path) -> None:
    four = Forked(4, run_jobs, placed(GROUPS, tmp_path, tmp_path), folder=tmp_path)
    status, errors = four.wait()
    assert status == [0] * 4, errors[-3000:]
    for job in GROUPS:
        check_same(both[0] / job["recipe"], tmp_path / job["out"])


@pytest.mark.slow
def test_a_divided_model_decodes_what_the_whole_one_does(tmp_path: Path) -> None:
    status, errors = Forked(2, decode, tmp_path, folder=tmp_path).wait()
    assert status == [0, 0], errors[-3000:]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"decoded-{rank}.json").read_text())
        assert found == {"equal": [True, True], "divided": [True, True], "synced": True}


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
    three = Forked(3, read_back, out, tmp_path / "three.safetensors", folder=tmp_path)
    read_back(out, tmp_path / "one.safetensors")
    status, errors = three.wait()
    assert status == [0, 0, 0], errors[-3000:]
    saved = load_file(checkpoint / "model.safetensors") | load_file(checkpoint / "optimizer.safetensors")
    for number in ("one", "three"):
        read = load_file(tmp_path / f"{number}.safetensors")
        assert read.keys() == saved.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in saved.items())
    one, third = (json.loads((tmp_path / f"{n}.json").read_text())["bytes"] for n in ("one", "three"))
    assert third < 0.4 * one  # weights and moments of one process


@pytest.mark.slow
def test_several_processes_set_a_damaged_checkpoint_aside_once(both: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(both[1] / "at once", out)
    (out / "checkpoints/000004/optimizer.safetensors").write_bytes(b"")
    status, errors = Forked(2, read_back, out, tmp_path / "read.safetensors", folder=tmp_path).wait()
    assert status == [0, 0], errors[-3000:]
    assert json.loads((tmp_path / "read.json").read_text())["step"] == 2
    assert [path.name for path in (out / "checkpoints").glob("*000004")] == ["damaged-000004"]


@pytest.mark.slow
def test_a_teacher_is_whole_on_no_process(tmp_path: Path) -> None:
    status, errors = Forked(2, load_in_parts, tmp_path, folder=tmp_path).wait()
    assert status == [0, 0], errors[-3000:]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"loaded-{rank}.json").read_text())
        assert found.pop("share") < 0.51
        assert found == {"equal": True, "packs": True}


def test_a_copy_of_a_student_that_will_be_divided_shares_its_weights(student: LanguageModel) -> None:
    copy = frozen_copy(student, shared=True).model
    for own, copied in zip(student.model.parameters(), copy.parameters(), strict=True):
        assert copied.data_ptr() == own.data_ptr()
        assert own.requires_grad
        assert not copied.requires_grad
    assert copy.get_output_embeddings().weight is copy.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("shard", "size", "keys", "groups"),
    [
        ("auto", 1, {}, 0),
        ("auto", 8, {}, 1),
        (True, 8, {}, 1),
        ({"replicate": 2}, 8, {}, 2),
        (False, 8, {}, 0),
        ("auto", 8, {"lora": {"rank": 4}}, 0),
        ("auto", 8, {"compile": True}, 0),
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
        (True, 2, {"compile": True}, "optimizer.shard: weights cannot be divided with compile. Fix: set optimizer"),
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


def test_checkpoints_of_several_processes_are_written_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opd.language.shard.join", lambda device: SimpleNamespace(size=2))
    join_ranks(read(RUN))
    with pytest.raises(ConfigError, match=r"^checkpoint\.beside: several processes .+ Fix: leave it out"):
        join_ranks(read({**RUN, "checkpoint": {"beside": True}}))


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
    return ["train", "grpo", *small, f"out={out}", *keys, "--quiet"]


def errors_of(text: str) -> list[str]:
    """The sentences that opd printed; torchrun adds lines of its own."""
    return [line for line in text.splitlines() if line.startswith("error:")]


@pytest.mark.slow
def test_an_error_of_one_rank_ends_the_job_with_its_sentence(tmp_path: Path) -> None:
    keys = command(tmp_path / "out", "prompts.reward=support.rank_faults:rank_1_fails")
    status, errors = Forked(2, command_line, *keys, folder=tmp_path).wait(100)
    assert status == [2, 2]
    assert len(errors_of(errors)) == 1, errors
    (sentence,) = errors_of(errors)
    assert sentence.startswith("error: rank 1: prompts.reward: support.rank_faults:rank_1_fails raised ValueError")


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_with_the_exchange_that_it_misses(tmp_path: Path) -> None:
    keys = command(tmp_path / "out", "prompts.reward=support.rank_faults:rank_1_waits")
    _, errors = Forked(2, command_line, *keys, folder=tmp_path, env={"OPD_RANK_TIMEOUT": "5"}).wait(100)
    assert len(errors_of(errors)) == 1, errors
    (sentence,) = errors_of(errors)
    assert sentence.startswith("error: rank 1 did not come to 'rollouts' within 5 s; the last exchange")


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_within_a_minute(tmp_path: Path) -> None:
    keys = command(tmp_path / "out", "optimizer.steps=5000", "prompts.reward=support.rank_faults:length")
    job = start_ranks(2, "-m", "opd", *keys)
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
    job = start_ranks(2, "-m", "opd", *keys)
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
