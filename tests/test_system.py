"""Faults of the system are one sentence and exit status 2, and a run goes on exactly when the cause is gone."""

from __future__ import annotations

import builtins
import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import opd
from opd.errors import OpdError, StorageError
from opd.output.faults import as_sentences
from support.command_line import command

RUN: dict[str, Any] = {
    "optimizer.steps": 4,
    "rollout.prompts_per_step": 4,
    "rollout.max_new_tokens": 8,
    "checkpoint.every": 1,
}
RUN |= {"eval.every": 2, "eval.prompts.limit": 4, "log": []}
OVERRIDES = [f"{key}={value}" for key, value in RUN.items()]


def weights(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


class Fault:
    """The disk of a folder fails at the n-th write, in whatever way Python writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, number: int, at: int) -> None:
        self.left = at
        real, rename = builtins.open, os.rename

        def fail(path: Any, *arguments: Any, **settings: Any) -> Any:
            mode = str(arguments[0] if arguments else settings.get("mode", "r"))
            if isinstance(path, str | os.PathLike) and str(folder) in str(path) and set(mode) & set("wax+"):
                self.left -= 1
                if self.left < 0:
                    raise OSError(number, os.strerror(number), str(path))
            return real(path, *arguments, **settings)

        monkeypatch.setattr(builtins, "open", fail)
        monkeypatch.setattr("io.open", fail)
        self.rename = rename


@pytest.mark.slow
@pytest.mark.parametrize(("number", "at"), [(errno.ENOSPC, 0), (errno.ENOSPC, 9), (errno.EROFS, 3)])
def test_a_disk_that_fails_is_one_sentence_and_the_run_goes_on_exactly(
    number: int, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opd.train("opd", {**RUN, "out": str(tmp_path / "whole")})
    out = tmp_path / "run"
    with monkeypatch.context() as broken:
        Fault(broken, out, number, at)
        with pytest.raises(OpdError, match=r"cannot be (written|used).* Fix: (free space|allow it|make room)"):
            opd.train("opd", {**RUN, "out": str(out)})
    opd.train("opd", {**RUN, "out": str(out)}, resume=True)
    assert weights(out) == weights(tmp_path / "whole")


class Removes:
    """A callback that removes or renames the run's folder after a step."""

    def __init__(self, out: Path, to: Path | None) -> None:
        self.out, self.to = out, to

    def step(self, step: int, metrics: Any) -> None:
        if step == 2:
            if self.to:
                self.out.rename(self.to)
            else:
                shutil.rmtree(self.out)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_folder_that_goes_during_a_run_is_one_sentence(renamed: bool, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(OpdError, match=r"run.* is not there \(any more\)"):
        opd.train("opd", {**RUN, "out": str(out)}, callbacks=[Removes(out, tmp_path / "b" if renamed else None)])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("out=" + "x" * 300, "has too long a name"),
        ("out=file/run", "file"),
        ("out=/proc/nothing/run", "cannot be made"),
        ("student=" + "x" * 5000, "too long"),
        ("prompts.path=" + "x" * 5000 + ".jsonl", "prompts"),
        ("device=cuda:99", "device"),
        ("device=tpu", "device"),
        ("device=", "device"),
        ("device=meta", "device"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(override: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("train", "opd", *OVERRIDES, "out=run", override, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 1200


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").mkdir()
    (out / ".keep").write_text("")
    with pytest.raises(OpdError, match=r"metrics\.jsonl|is no run of opd"):
        opd.train("opd", {**RUN, "out": str(out)})


def test_memory_that_runs_out_is_one_sentence_and_faults_of_networks_are_left() -> None:
    with pytest.raises(StorageError, match=r"the memory does not hold this run\. Fix: lower"), as_sentences():
        raise MemoryError
    with pytest.raises(StorageError, match="the memory does not hold"), as_sentences():
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(ConnectionResetError), as_sentences():
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    with pytest.raises(RuntimeError, match="a fault of our own"), as_sentences():
        raise RuntimeError("a fault of our own")


def test_a_port_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    done = command("view", "run", "--live", "--port", "99999", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_function_that_is_no_task_is_not_called(tmp_path: Path) -> None:
    done = command("eval", "nano/math-base", "os:getcwd", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("recipe", "override", "words"),
    [
        ("opsd", 'teacher.view={type: privileged, template: "{answer:>999999999}"}', "formats a field"),
        ("sdpo", 'teacher.view={type: feedback, solution: "{solution!r:>99999999}"}', "formats a field"),
        ("opd", "rollout.temperature=1e-320", "too large to compute"),
        ("opd", "loss.temperature=1e-320", "loss.temperature"),
        ("opd", "optimizer.lr=1e300", "optimizer.lr"),
        ("opd", "eval.rollouts_per_prompt=1000000000000", "eval.rollouts_per_prompt"),
    ],
)
def test_a_value_that_no_machine_computes_is_one_sentence(
    recipe: str, override: str, words: str, tmp_path: Path
) -> None:
    done = command("train", recipe, *OVERRIDES, "out=run", override, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_more_samples_than_memory_holds_are_refused() -> None:
    with pytest.raises(OpdError, match=r"samples: at most 100,000 are possible \(got 1000000000000\)\. Fix: lower it"):
        opd.evaluate("nano/math-base", "math", samples=10**12)
