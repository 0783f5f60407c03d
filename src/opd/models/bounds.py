"""Bounds of time and memory for programs that come with a model, such as its chat template."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Thread
from threading import enumerate as enumerate_threads
from typing import TypeVar

Result = TypeVar("Result")

_MEMORY = Path("/proc/self/statm")
_ONE_AT_A_TIME = Lock()
BESIDE = ("rollouts", "checkpoint")
"""Names of threads that work while another trains or copies tensors, which a bound of the process would hit too."""
_LAST_JOIN = 1.0
"""Seconds that a call which was told to end has for it."""


def within(seconds: float, memory: int, call: Callable[[], Result]) -> Result:
    """The result of a call of pure Python code, which is ended if it takes longer or needs more memory.

    It runs in a thread, as only there Python can stop a loop from outside without a signal.

    Args:
        memory: bytes by which the process may grow meanwhile. Linux alone keeps this bound, and only while no thread
            of ``BESIDE`` is alive; all prompts are rendered before there is one.

    Raises:
        TimeoutError: it took longer.
        MemoryError: it needed more.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=work, daemon=True)
    with _ONE_AT_A_TIME, _growing_by(memory):
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
            thread.join(_LAST_JOIN)
            raise TimeoutError(f"it takes more than {seconds:g} seconds")
    if errors:
        raise errors[0]
    return results[0]


@contextmanager
def _growing_by(memory: int) -> Iterator[None]:
    """Bound the address space of this process to what it has and this much more."""
    if not _MEMORY.exists() or any(thread.name.startswith(BESIDE) for thread in enumerate_threads()):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(_MEMORY.read_text().split()[0]) * resource.getpagesize() + memory
    known = [bound for bound in (limit, soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(known), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
