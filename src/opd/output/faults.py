"""Faults of the system below opd (disks, folders, memory, devices) as one sentence. Nothing here imports torch."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from opd.errors import OpdError, StorageError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})

IN_MEMORY = re.compile(r"out of memory|can't allocate memory|DefaultCPUAllocator", re.IGNORECASE)
"""torch's words for memory that ran out."""

ON_DISK = re.compile(r"\(os error (\d+)\)")
"""Rust's words for a fault of the system, as in errors of safetensors."""

LONGEST_PATH = 200
"""Characters of a path in an error."""

WAITS = "what is saved stays, and a run goes on with --resume"


@contextmanager
def as_sentences() -> Iterator[None]:
    """Turn faults of the system into ``StorageError``; all other errors pass.

    Raises:
        StorageError: a disk is full or read-only, a folder is gone, a name is too long, or memory ran out.
    """
    try:
        yield
    except OpdError:
        raise
    except MemoryError as error:
        raise _memory() from error
    except OSError as error:
        if error.errno is None or (error.filename is None and error.errno not in FULL):  # of a network, not of a disk
            raise
        raise _storage(error.errno, error.strerror or "", error.filename) from error
    except Exception as error:
        text = str(error)
        if IN_MEMORY.search(text):
            raise _memory() from error
        found = ON_DISK.search(text)
        if type(error).__name__ != "SafetensorError" or not found:
            raise
        raise _storage(int(found[1]), text, None) from error


def _memory() -> StorageError:
    return StorageError(
        "the memory does not hold this run. Fix: lower rollout.prompts_per_step, optimizer.micro_batch, "
        "rollout.max_new_tokens or teacher.max_tokens, or take a smaller model"
    )


def _storage(number: int, reason: str, path: object) -> StorageError:
    name = "a file" if path is None else f"'{str(path)[:LONGEST_PATH]}'"
    if number in FULL:
        return StorageError(f"{name} cannot be written, the disk is full. Fix: free space; {WAITS}")
    if number in DENIED:
        return StorageError(f"{name} cannot be used ({reason}). Fix: allow it, or choose another out; {WAITS}")
    if number == errno.ENAMETOOLONG:
        return StorageError(f"{name} has too long a name. Fix: write a shorter one")
    if number in GONE:
        return StorageError(f"{name} is not there (any more) ({reason}). Fix: put it back or correct its path; {WAITS}")
    return StorageError(f"{name} cannot be used ({reason}). Fix: repair it; {WAITS}")
