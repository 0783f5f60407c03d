"""Paths of the small trained models that ship with the package. Nothing here imports torch."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from opd.errors import ModelError, near

REVISION = re.compile(r"[\w.-]+/[\w.-]+@[\w./-]+")
"""A hub id with a branch, tag or commit."""

OTHER_FORMATS = ["*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.pth", "original/**"]
"""Files of a hub repository that transformers does not load."""

BUNDLED = Path(__file__).parents[1] / "nano" / "models"
"""Folder of the models that a run file names ``nano/NAME``."""


def resolve(name: str) -> str:
    """The folder of ``nano/NAME`` or of ``ORG/NAME@REVISION``, and ``~`` as the home folder; others are unchanged.

    Raises:
        ModelError: there is no such bundled model or revision.
    """
    if not Path(name).exists() and name.startswith("nano/"):
        folder = BUNDLED / name.removeprefix("nano/")
        if not folder.is_dir():
            known = bundled_names()
            raise ModelError(
                f"there is no bundled model '{name}'{near(name, known)} Fix: name one of {', '.join(known)}"
            )
        return str(folder)
    if REVISION.fullmatch(name) and not Path(name).exists():
        return _revision(*name.split("@"))
    return str(Path(name).expanduser()) if name.startswith("~") else name


@cache
def _revision(name: str, revision: str) -> str:
    """The folder of a hub model's files at a branch, tag or commit, downloaded once."""
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, revision=revision, ignore_patterns=OTHER_FORMATS)
    except Exception as error:  # the hub's and the network's own errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"cannot load revision '{revision}' of '{name}' ({reason}). Fix: check both names, or give a folder"
        ) from error


def bundled_names() -> list[str]:
    """Names of the bundled models."""
    return sorted(f"nano/{p.name}" for p in BUNDLED.glob("*/"))


def is_bundled(name: str) -> bool:
    """Whether a model is bundled, or is the folder or a checkpoint of a run that trained a bundled one."""
    path = Path(name).expanduser()
    if not path.exists():
        return name.startswith("nano/")
    if path.resolve().is_relative_to(BUNDLED):
        return True
    runs = (folder / "run.json" for folder in (path, *path.resolve().parents[:2]))
    run = next((run for run in runs if run.is_file()), None)
    try:
        return run is not None and is_bundled(str(json.loads(run.read_text())["student"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
