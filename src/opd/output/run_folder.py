"""Folders of runs: one writer at a time, and files that appear whole or not at all. Nothing here imports torch."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opd.errors import ConfigError

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
"""In a folder that some process writes into; says which."""

PATIENCE_S = 5.0
"""How long the workers of a killed start may take to notice and let go."""


@contextmanager
def locked(folder: Path, *, patience: float | None = None) -> Iterator[None]:
    """Be the only one who writes into a folder; the system lets go of the lock when this process dies, however it dies.

    Where files cannot be locked (Windows, some network disks) nothing is guarded.

    Args:
        folder: exists.
        patience: seconds to wait for another process; by default PATIENCE_S.

    Raises:
        ConfigError: another process still holds it after that time.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + (PATIENCE_S if patience is None else patience)
        while not _take(handle):
            if time.monotonic() > until:
                holder = os.read(handle, 20).decode(errors="replace").strip()
                raise ConfigError(
                    f"out: '{folder}' is in use by another run{f' (process {holder})' if holder else ''}; wait until "
                    "it ends, or choose another out"
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
    """Whether nothing but files of our own, whose names begin with a dot, would be written over."""
    if not folder.is_dir():
        return not folder.exists()
    return all(entry.name.startswith(".") for entry in folder.iterdir())


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and onto the disk."""
    partial = path.with_name(f".{path.name}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, tree: Any) -> None:
    """The same for JSON."""
    write_text(path, json.dumps(tree, indent=2) + "\n")
