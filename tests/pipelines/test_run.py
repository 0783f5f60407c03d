"""Pipelines of real tiny runs: what runs again, what is kept, failures, and kills."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

import opd
from opd.errors import CheckpointError, ConfigError
from opd.models.bundled import resolve
from opd.output.run_folder import locked
from opd.pipelines.process import Worker
from opd.pipelines.progress import Display, Row
from opd.pipelines.result import PipelineResult
from opd.pipelines.run import pipeline
from opd.pipelines.state import supersede
from opd.pipelines.table import Lines, LiveTable
from opd.training.interrupts import Interrupted
from support.stages import InProcess

TINY = {
    "run": "opd",
    "optimizer.steps": 4,
    "rollout.prompts_per_step": 4,
    "rollout.max_new_tokens": 8,
    "eval": {"prompts": None},
    "checkpoint.every": 1,
    "log": [],
}

SCORED = {"task": "math", "split": "test", "limit": 8}

STAGES: dict[str, dict[str, Any]] = {
    "one": {**TINY, "seed": 1},
    "two": {**TINY, "seed": 2},
    "three": {**TINY, "student": "stage:one", "teacher": {"model": "stage:two"}},
    "mean": {"average": ["stage:one", "stage:three"]},
    "scores": {
        "eval": ["stage:mean", "nano/math-base"],
        "prompts": SCORED,
        "max_new_tokens": 8,
    },
}


def tree(out: Path, **changes: Any) -> dict[str, Any]:
    return {"out": str(out), "stages": {name: {**stage, **changes.get(name, {})} for name, stage in STAGES.items()}}


def without(source: dict[str, Any], *names: str) -> dict[str, Any]:
    return {**source, "stages": {name: stage for name, stage in source["stages"].items() if name not in names}}


def states(result: PipelineResult) -> dict[str, str]:
    return {name: stage.state for name, stage in result.stages.items()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in ours.items())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PipelineResult]:
    """All stages, one at a time and in this process."""
    out = tmp_path_factory.mktemp("finished") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opd.pipelines.run.Worker", InProcess)
        return out, pipeline(tree(out))


@pytest.fixture
def copy(finished: tuple[Path, PipelineResult], tmp_path: Path) -> Path:
    shutil.copytree(finished[0], tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opd.pipelines.run.Worker", None)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opd.pipelines.run.Worker", InProcess)


class Recording:
    """A display that records all events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []

    def start(self, rows: Mapping[str, Row]) -> None: ...

    def changed(self, row: Row) -> None:
        self.events.append((row.stage.name, row.state, row.event))

    def validated(self, row: Row) -> None: ...

    def stop(self) -> None: ...


def test_every_stage_writes_its_model_or_metrics(finished: tuple[Path, PipelineResult], tmp_path: Path) -> None:
    out, result = finished
    assert states(result) == dict.fromkeys(STAGES, "done")
    assert (result.exit_status, result.problems) == (0, [])
    opd.train("opd", {**flat(STAGES["one"]), "out": str(tmp_path / "one")})
    assert same(out / "one", tmp_path / "one")
    run = json.loads((out / "three" / "run.json").read_text())
    assert (run["student"], run["teacher"]["model"]) == (str(out / "one"), str(out / "two"))
    one, three, mean = (weights(out / name) for name in ("one", "three", "mean"))
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, ((one[name].float() + three[name].float()) / 2).to(tensor.dtype))
    metrics = json.loads((out / "scores" / "result.json").read_text())["metrics"]
    assert list(metrics) == ["stage:mean", "nano/math-base"]
    assert metrics["stage:mean"] == opd.evaluate(str(out / "mean"), STAGES["scores"]["prompts"], max_new_tokens=8)
    assert result.stages["scores"].result["metrics"] == metrics
    data = json.loads((out / "pipeline.json").read_text())
    assert {name: stage["state"] for name, stage in data["stages"].items()} == states(result)
    assert data["stages"]["one"]["tokens"] == result.stages["one"].result["tokens"] > 0
    report = (out / "report.md").read_text()
    assert 's2["three<br/>opd"]' in report
    assert "s0 --> s2" in report
    assert "| nano/math-base | " in report


@pytest.mark.slow
def test_two_processes_at_a_time_end_with_the_same_weights(
    finished: tuple[Path, PipelineResult], tmp_path: Path
) -> None:
    result = pipeline({**tree(tmp_path / "out"), "parallel": 2})
    assert states(result) == dict.fromkeys(STAGES, "done")
    assert (result.exit_status, result.problems) == (0, [])
    for name in ("one", "two", "three", "mean"):
        assert same(result.out / name, finished[0] / name), name
    assert result.stages["scores"].result["metrics"] == finished[1].stages["scores"].result["metrics"]


def flat(stage: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in stage.items() if k not in ("run", "eval")} | {"eval.prompts": None}


@pytest.mark.usefixtures("no_worker")
def test_finished_stages_are_not_run_again(copy: Path) -> None:
    changed = tree(copy, one={"log": ["tensorboard"], "checkpoint.every": 3})
    assert states(pipeline(changed)) == dict.fromkeys(STAGES, "unchanged")


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_a_report_that_cannot_be_written_is_said_and_hides_no_result(name: str, copy: Path, no_worker: None) -> None:
    (copy / name).unlink()
    (copy / name / "mine").mkdir(parents=True)
    result = pipeline(tree(copy))
    assert states(result) == dict.fromkeys(STAGES, "unchanged")
    (problem,) = result.problems
    assert problem.startswith(f"{name} was not written: ")
    assert problem.endswith("Fix: make room for it and run the pipeline again")
    assert result.exit_status == 0


def test_a_change_runs_dependent_stages_again_and_keeps_the_old_folder(copy: Path) -> None:
    old, recording = weights(copy / "three"), Recording()
    result = pipeline(without(tree(copy, three={"optimizer.steps": 2}), "scores"), displays=[recording])
    assert states(result) == {"one": "unchanged", "two": "unchanged", "three": "done", "mean": "done"}
    assert result.stages["three"].result["steps"] == 2
    kept = copy / ".superseded" / "three-1"
    assert all(torch.equal(t, old[n]) for n, t in weights(kept).items())
    assert not same(kept, copy / "three")
    words = {name: event for name, state, event in recording.events if state == "running"}
    assert words["three"] == f"optimizer.steps was 4 and is 2; the old folder is {kept}"
    assert words["mean"].startswith("'stage:three' has changed; ")


@pytest.mark.usefixtures("in_process")
def test_a_stage_with_the_same_output_does_not_run_later_stages_again(copy: Path) -> None:
    result = pipeline(tree(copy, mean={"weights": [0.5, 0.5]}))
    assert states(result) == {**dict.fromkeys(STAGES, "unchanged"), "mean": "done"}
    assert (copy / ".superseded" / "mean-1" / "stage.json").is_file()


def test_an_unfinished_stage_resumes_with_the_same_settings_and_restarts_with_others(
    copy: Path, no_worker: None
) -> None:
    (copy / "three" / "stage.json").unlink()
    for steps, kept in ((4, []), (3, ["three-1"])):
        source = without(tree(copy, three={"optimizer.steps": steps}), "mean", "scores")
        with pytest.raises(TypeError):  # the stage would run
            pipeline(source)
        assert sorted(p.name for p in copy.glob(".superseded/*")) == kept
    assert json.loads((copy / ".superseded" / "three-1" / "run.json").read_text())["optimizer"]["steps"] == 4
    for name in ("three-7", "three-7-2"):
        (copy / ".superseded" / name).mkdir()
    assert supersede(copy, "three").name == "three-8"


def test_another_outside_model_runs_the_stage_again(copy: Path, no_worker: None) -> None:
    base = copy.parent / "base"
    shutil.copytree(resolve("nano/math-base"), base)
    source = without(tree(copy, one={"student": str(base)}), "three", "mean", "scores")
    with pytest.raises(TypeError):
        pipeline(source)
    started = json.loads((copy / "one" / ".started.json").read_text())
    assert (
        started["inputs"][str(base)]
        == json.loads((copy / "two" / "stage.json").read_text())["inputs"]["nano/math-base"]
    )
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "note": 1}))
    with pytest.raises(TypeError):
        pipeline(source)
    assert json.loads((copy / "one" / ".started.json").read_text())["inputs"] != started["inputs"]


@pytest.mark.parametrize(
    ("file", "edit", "words"),
    [
        ("three/model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\xff"), "was edited after stage"),
        ("mean/tokenizer.json", lambda p: p.unlink(), "was deleted after stage 'mean' had finished. Fix: delete"),
        ("scores/result.json", lambda p: p.write_text("{}"), "was edited after stage 'scores'"),
        ("one/stage.json", lambda p: p.write_text("{}"), "was changed or was not written by opd. Fix: delete"),
        ("one/stage.json", lambda p: p.write_text("[]"), "was changed or was not written by opd. Fix: delete"),
        (
            "one/stage.json",
            lambda p: p.write_text(p.read_text().replace('"steps": ', '"steps": 1')),
            "was changed or was not written by opd. Fix: delete",
        ),
    ],
)
@pytest.mark.usefixtures("no_worker")
def test_a_folder_edited_by_hand_is_refused(copy: Path, file: str, edit: Callable[[Path], Any], words: str) -> None:
    edit(copy / file)
    before = (copy / "pipeline.json").read_text()
    with pytest.raises(CheckpointError, match=f"'{copy / file}' {words}"):
        pipeline(tree(copy, one={"seed": 9}))
    assert (copy / "pipeline.json").read_text() == before


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize("folder", [".", "three"])
def test_a_folder_in_use_is_refused(copy: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opd.output.run_folder.PATIENCE_S", 0.1)
    with locked(copy / folder), pytest.raises(ConfigError, match=f"out: '{copy / folder}' is in use by another run"):
        pipeline(tree(copy))


@pytest.mark.slow
def test_a_failure_or_a_collapse_blocks_only_dependent_stages(
    finished: tuple[Path, PipelineResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = {"task": "math", "split": "test", "limit": 16}
    collapses = {
        **TINY,
        "optimizer": {"steps": 2, "lr": 3.0, "warmup": 0},
        "eval": {"prompts": held_out, "every": 1, "diagnostics": 0, "max_new_tokens": 64},
    }
    source = {
        "out": "out",
        "parallel": 2,
        "stages": {
            "bad": {**TINY, "prompts.limit": 2},
            "falls": collapses,
            "after": {"average": ["stage:bad", "nano/math-base"]},
            "last": {"eval": ["stage:after"], "prompts": {"task": "math"}},
            "taught": {**TINY, "teacher": {"model": "stage:falls"}},
            "apart": {"average": [str(finished[0] / "one"), "nano/math-base"]},
        },
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(source, sort_keys=False))
    done = subprocess.run(command("p.yaml"), cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    bad, falls = done.stderr.strip().splitlines()
    assert bad.startswith("error: stage 'bad': prompts: there are 2 prompts, fewer than one batch")
    assert falls.startswith("error: stage 'falls' was stopped by the guard 'collapse' (validation accuracy fell")
    assert "after  blocked  stage 'after' was not run, because stage 'bad' has no model" in done.stdout
    reached = {
        "bad": "failed",
        "falls": "collapsed",
        "after": "blocked",
        "last": "blocked",
        "taught": "blocked",
        "apart": "done",
    }
    stages = json.loads((tmp_path / "out" / "pipeline.json").read_text())["stages"]
    assert {name: stage["state"] for name, stage in stages.items()} == reached
    assert f"- {falls.removeprefix('error: ')}" in (tmp_path / "out" / "report.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("opd.pipelines.run.Worker", None)  # the stage would collapse again
    again = pipeline(without(source, "bad", "after", "last"))
    assert states(again) == {"falls": "collapsed", "taught": "blocked", "apart": "unchanged"}
    assert again.exit_status == 1


def test_a_killed_process_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shot(Worker):
        def __init__(self, job: Mapping[str, Any], log: Path) -> None:
            super().__init__(job, log)
            self.process.send_signal(signal.SIGKILL)

    monkeypatch.setattr("opd.pipelines.run.Worker", Shot)
    result = pipeline({"out": str(tmp_path / "out"), "stages": {"a": TINY}})
    assert states(result) == {"a": "failed"}
    assert "its process ended with status -9 (its log is '" in result.problems[0]


def test_an_interrupt_ends_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers: list[Worker] = []

    class Noted(Worker):
        def __init__(self, job: Mapping[str, Any], log: Path) -> None:
            super().__init__(job, log)
            workers.append(self)

    class Interrupt(Recording):
        def changed(self, row: Row) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("opd.pipelines.run.Worker", Noted)
    with pytest.raises(KeyboardInterrupt):
        pipeline({"out": str(tmp_path / "out"), "stages": {"a": TINY}}, displays=[Interrupt()])
    assert [worker.process.poll() for worker in workers] == [-signal.SIGTERM]


@pytest.mark.slow
def test_a_signal_lets_a_running_stage_save_its_step(tmp_path: Path) -> None:
    class Signals(Recording):
        def validated(self, row: Row) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    stage = {**TINY, "optimizer.steps": 6, "checkpoint.every": 100, "eval": {"prompts": SCORED, "every": 100}}
    with pytest.raises(Interrupted, match="interrupted by SIGTERM; the same command goes on") as end:
        pipeline({"out": str(tmp_path / "out"), "stages": {"a": stage}}, displays=[Signals()])
    assert end.value.number == signal.SIGTERM
    (kept,) = (tmp_path / "out" / "a" / "checkpoints").glob("[0-9]*")
    assert 0 < int(kept.name) < 6


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}


def command(file: Path | str, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "opd", "pipeline", str(file), *overrides]


@pytest.mark.slow
def test_a_pipeline_killed_at_any_time_ends_with_the_same_weights(
    finished: tuple[Path, PipelineResult], tmp_path: Path
) -> None:
    file, out, rng = tmp_path / "p.yaml", tmp_path / "out", random.Random(0)
    file.write_text(yaml.safe_dump(without(tree(out), "mean", "scores"), sort_keys=False))
    for moment in ("one/checkpoints/000001", "two/run.json", "three/checkpoints/000002"):
        process = subprocess.Popen(command(file), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until((out / moment).exists, seconds=60)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        worker = int((out / moment.split("/")[0] / ".lock").read_text())
        wait_until(partial(ended, worker), seconds=5)
    done = subprocess.run(command(file), env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name in ("one", "two", "three"):
        assert same(out / name, finished[0] / name), name
    assert not (out / ".superseded").exists()


def wait_until(holds: Callable[[], bool], *, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "waited for too long"
        time.sleep(0.01)


def ended(process: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_terminal_and_log_output(copy: Path, no_worker: None) -> None:
    terminal, log = StringIO(), StringIO()
    displays: list[Display] = [
        LiveTable(Console(file=terminal, force_terminal=True, width=120, color_system=None)),
        Lines(Console(file=log, width=120)),
    ]
    pipeline(without(tree(copy), "scores"), displays=displays)
    assert log.getvalue().splitlines() == [f"{name}  unchanged" for name in ("one", "two", "three", "mean")]
    assert "validation" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()
