"""Locks of run folders, and atomic writes."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import opd
from opd.errors import ConfigError
from opd.output.run_folder import is_empty, locked, write_json, write_text
from support.models import make_model

HOLD = (
    "import sys, time; from pathlib import Path; from opd.output.run_folder import locked\n"
    "with locked(Path(sys.argv[1])): {}"
)


def test_a_locked_folder_refuses_a_second_process_and_names_the_first(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(ConfigError, match=rf"'{tmp_path}' is in use by another run \(process {os.getpid()}\)"),
        locked(tmp_path, patience=0.1),
    ):
        pass
    with locked(tmp_path, patience=0):
        pass


def test_the_lock_ends_with_the_process(tmp_path: Path) -> None:
    hold = HOLD.format("print('held', flush=True); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with process.stdout:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"process {process.pid}"), locked(tmp_path, patience=0.1):
            pass
        process.send_signal(signal.SIGKILL)
        with locked(tmp_path):
            pass
        process.wait()


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_in_the_same_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    monkeypatch.setattr("opd.output.run_folder.PATIENCE_S", 0.1)
    overrides: dict[str, Any] = {
        "optimizer.steps": 1,
        "rollout.prompts_per_step": 4,
        "eval.prompts": None,
        "log": [],
        "out": str(tmp_path),
    }
    prompts = [{"prompt": f"a {letter}"} for letter in "bcde"]
    with locked(tmp_path), pytest.raises(ConfigError, match="is in use by another run"):
        opd.train("opd", overrides, student=make_model(0), teacher=make_model(1), prompts=prompts, resume=resume)
    assert is_empty(tmp_path)


def test_a_partial_run_file_of_a_killed_start_does_not_block_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".run.json").write_text('{"half')
    overrides: dict[str, Any] = {
        "optimizer.steps": 1,
        "rollout.prompts_per_step": 4,
        "rollout.max_new_tokens": 4,
        "eval.prompts": None,
        "log": [],
    }
    prompts = [{"prompt": f"a {letter}"} for letter in "bcde"]
    models: dict[str, Any] = {"student": make_model(0), "teacher": make_model(1)}
    assert opd.train("opd", {**overrides, "out": str(tmp_path)}, prompts=prompts, **models, resume=True).steps == 1


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1\n}\n'
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.json", "half \udc80")
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1\n}\n'
    assert is_empty(tmp_path / "nothing")
    assert not is_empty(tmp_path)
