"""Whether a run may use its folder: a free one, or that of the very same run. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opd.config.run import MAY_CHANGE, BaseRun
from opd.errors import CheckpointError, ConfigError
from opd.output.run_folder import is_empty, leaves
from opd.report.files import read_json

SHARD = "optimizer.shard"
"""A resumed run may divide its weights in another way."""


def claim(out: Path, config: BaseRun, *, resume: bool) -> bool:
    """Refuse a folder with anything but this very run, and this run unless it is to be resumed.

    Returns:
        Whether the folder holds a run that goes on.

    A folder whose run has no checkpoint of a step and no result is free: the run ended before it had anything to keep.

    Raises:
        ConfigError: the folder has other files, or a run that is not to be resumed.
        CheckpointError: the run in it was started with other settings.
    """
    saved = out / "run.json"
    if saved.exists() and not saved.is_file():
        raise ConfigError(f"out: '{saved}' is no file. Fix: choose another folder")
    if not saved.exists():
        if not is_empty(out):
            raise ConfigError(f"out: '{out}' exists and is no run of opd. Fix: choose another folder")
        return False
    begun = any(path.name.strip("0") for path in out.glob("checkpoints/[0-9]*"))
    finished = (out / "result.json").exists()
    if not begun and not finished:
        return False
    if not resume:
        raise ConfigError(f"out: '{out}' already holds a run. Fix: go on with --resume, or choose another out")
    if not begun:
        raise CheckpointError(f"'{out}' holds a finished run without checkpoints. Fix: choose another out")
    _check_same(out, read_json(saved) or {}, config)
    return True


def _check_same(out: Path, old: Mapping[str, Any], config: BaseRun) -> None:
    """Refuse other settings than those the run was started with, except more steps.

    Raises:
        CheckpointError: the sentence names the first such key.
    """
    was, now = dict(leaves(old)), dict(leaves(config.model_dump(mode="json")))
    for key in [*now, *(was.keys() - now.keys())]:
        before, after = was.get(key, "not set"), now.get(key, "not set")
        if (
            before == after
            or key.partition(".")[0] in MAY_CHANGE
            or key.startswith(SHARD)
            or _adds_steps(key, was, now)
        ):
            continue
        if key == "optimizer.steps" and after > before:
            raise CheckpointError(
                f"{key}: '{out}' was started with {before} steps, over which optimizer.schedule="
                f"{config.optimizer.schedule} lowers the learning rate, so they cannot become {after}. Fix: start "
                f"another run with student={out}"
            )
        raise CheckpointError(
            f"{key}: '{out}' was started with {before}, and it is {after} now. Fix: resume with the same run file, or "
            "choose another out"
        )


def _adds_steps(key: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the key asks for more steps of a schedule whose learning rates do not depend on their number."""
    more = key == "optimizer.steps" and now[key] >= was.get(key, 0)
    return more and now["optimizer.schedule"] == "constant"
