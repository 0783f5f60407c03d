"""Sealed folders: ``files.json`` has the sha256 of every other file, and of itself. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from opd.errors import ModelError
from opd.models.folders import ADAPTER, model_files

FILES, MODEL = "files.json", "model"

LOADED_IF_THERE = (".safetensors", ADAPTER)
"""Ends of names of files that would be loaded if somebody added them to a model's folder."""


def seal(folder: Path, **facts: str) -> None:
    """Write ``files.json`` with some facts, and flush the folder to disk, so that a rename never points at less."""
    _write(folder, _files(folder), facts)
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


def seal_model(folder: Path) -> None:
    """Write the digests of a run's final model, and flush it to disk. The folder's other files may change."""
    names = _model_files(folder)
    _write(folder, names, {"of": MODEL})
    for name in (*names, FILES):
        flush(folder / name)
    flush(folder)


def opened(folder: Path) -> dict[str, Any]:
    """The facts of a sealed folder, after every file was compared with its digest.

    Raises:
        ValueError: a file was changed, added or deleted since; the sentence names it.
    """
    if not (folder / FILES).is_file():  # so is a pipe or a device, which would never end
        raise ValueError(f"'{FILES}' is missing")
    try:
        content = json.loads((folder / FILES).read_text())
        whole = content.pop("seal") == _hash(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"'{FILES}' has changed since it was written")
    digests = content.pop("sha256")
    for name, expected in digests.items():
        if not (folder / name).is_file():
            raise ValueError(f"'{name}' is missing")
        if digest(folder / name) != expected:
            raise ValueError(f"'{name}' has changed since it was written")
    only = content.get("of") == MODEL
    others = set(_model_files(folder) if only else _files(folder)) - digests.keys()
    if foreign := {name for name in others if not only or name.endswith(LOADED_IF_THERE)}:
        raise ValueError(f"'{min(foreign)}' does not belong to it")
    facts: dict[str, Any] = content
    return facts


def check_sealed(path: str, *, key: str) -> None:
    """Refuse a checkpoint or a run's final model that was damaged; any folder or id without ``files.json`` passes.

    Raises:
        ModelError: a file was changed, added or deleted since it was saved.
    """
    if (Path(path) / FILES).is_file():
        try:
            opened(Path(path))
        except ValueError as error:
            raise ModelError(
                f"{key}: '{path}' is damaged, {error}. Fix: name another model or checkpoint; if you changed it "
                f"yourself, delete its {FILES}"
            ) from None


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(folder: Path, names: Iterable[str], facts: Mapping[str, str]) -> None:
    content = {**facts, "sha256": {name: digest(folder / name) for name in names}}
    (folder / FILES).write_text(json.dumps({**content, "seal": _hash(content)}, indent=2))


def _model_files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in model_files(folder)]


def _files(folder: Path) -> Iterator[str]:
    """Relative paths of all files but ``files.json``, without hidden ones, which tools leave behind."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.as_posix() != FILES and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix()


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
