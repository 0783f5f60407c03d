"""Run folders: one process at a time, and atomic writes of files. Nothing here imports torch."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opd.config.secrets import redact
from opd.errors import ConfigError

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
"""File that is locked while a process writes into the folder; holds the process id."""

PATIENCE_S = 5.0
"""Seconds to wait for a lock; the worker processes of a killed pipeline need a moment to exit."""


@contextmanager
def locked(folder: Path, *, patience: float | None = None) -> Iterator[None]:
    """Lock a folder for this process. The system releases the lock when the process ends, even if it is killed.

    Without file locks (Windows, some network disks) there is no protection.

    Args:
        folder: an existing folder.
        patience: seconds to wait for another process; None for ``PATIENCE_S``.

    Raises:
        ConfigError: another process still holds the lock after that time, or the lock is no file.
    """
    if (folder / LOCK).exists() and not (folder / LOCK).is_file():
        raise ConfigError(f"out: '{folder / LOCK}' is no file. Fix: delete it")
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + (PATIENCE_S if patience is None else patience)
        while not _take(handle):
            if time.monotonic() > until:
                holder = os.read(handle, 20).decode(errors="replace").strip()
                raise ConfigError(
                    f"out: '{folder}' is in use by another run{f' (process {holder})' if holder else ''}. "
                    "Fix: wait until it ends, or choose another folder"
                )
            time.sleep(0.05)
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        os.close(handle)


def _take(handle: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def is_empty(folder: Path) -> bool:
    """Whether a folder is missing, or holds only files whose names begin with a dot."""
    if not folder.is_dir():
        return not folder.exists()
    return all(entry.name.startswith(".") for entry in folder.iterdir())


def write_text(path: Path, text: str) -> None:
    """Write a file atomically and flush it to disk, without any key of a server."""
    partial = path.with_name(f".{path.name}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(redact(text))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, tree: Any) -> None:
    """Write a JSON file atomically and flush it to disk."""
    write_text(path, json.dumps(finite(tree), indent=2, allow_nan=False) + "\n")


def json_line(tree: Any) -> str:
    """A line of a JSONL file."""
    return json.dumps(finite(tree), allow_nan=False) + "\n"


def finite(tree: Any) -> Any:
    """The same tree with None for every number that is not finite, which JSON cannot hold."""
    if isinstance(tree, Mapping):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value of a tree of mappings, with its dotted key."""
    if isinstance(tree, Mapping) and tree:
        for inner, value in tree.items():
            yield from leaves(value, f"{key}.{inner}" if key else inner)
    else:
        yield key, tree
