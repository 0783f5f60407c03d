"""Signals that ask a run to end: it finishes its step and saves a checkpoint. Nothing here imports torch."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

NAMES = tuple(name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C, the end that a scheduler asks for, and a terminal that closes."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the run.

    Attributes:
        number: of the signal; the exit status of the command is 128 more.
    """

    def __init__(self, number: int, sentence: str) -> None:
        super().__init__(sentence)
        self.number = number


@dataclass
class Asked:
    """The signal that has asked the run to end; None until there is one."""

    number: int | None = None

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.number).name if self.number else ""


@contextmanager
def noticed(ends: str) -> Iterator[Asked]:
    """Note the first signal instead of dying of it; a second one ends the run at once.

    Only the main thread gets signals. A signal that the process ignores, as under ``nohup``, stays ignored.

    Args:
        ends: what happens after the first signal, for the line on stderr.

    Raises:
        Interrupted: at the second signal.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        if asked.number is not None:
            raise Interrupted(number, f"ended at once by {signal.Signals(number).name}")
        asked.number = number
        os.write(2, f"\n{asked.name}: {ends}; a second signal ends it at once\n".encode())

    before = {}
    for name in NAMES:
        number = signal.Signals[name]
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
