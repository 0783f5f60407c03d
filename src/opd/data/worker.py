"""A process of its own for code that may hang or crash: one line of JSON in, one line out."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

LAST_WAIT = 5.0
"""Seconds for a process that has stopped answering to end by itself."""


class Worker:
    """Runs a script that answers lines; it is started on first use, and again after it has ended. Any thread may ask.

    The process ends with its standard input, so it does not outlive this one. Ctrl-C does not reach it.

    Args:
        script: reads lines of JSON from standard input, and prints a line for each.
        arguments: of the script.
    """

    def __init__(self, script: Path, *arguments: str) -> None:
        self.command = [sys.executable, "-P", "-W", "ignore", str(script), *arguments]
        self.lock = Lock()
        self.process: subprocess.Popen[str] | None = None
        self.owner = 0
        self.status: int | None = None
        """Exit status of the last process that ended instead of answering."""
        atexit.register(self.stop)

    def ask(self, question: Any) -> str | None:
        """The line that answers a question; None if the process ended instead."""
        with self.lock:
            process = self._running()
            assert process.stdin
            assert process.stdout
            try:
                process.stdin.write(json.dumps(question) + "\n")
                process.stdin.flush()
                reply = process.stdout.readline()
            except BrokenPipeError:
                reply = ""
            if not reply:
                with suppress(subprocess.TimeoutExpired):
                    self.status = process.wait(LAST_WAIT)
                self.stop()
            return reply.strip() or None

    def stop(self) -> None:
        """End the process, if this one started it."""
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            self.process.communicate()
        self.process = None

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            self.stop()
            self.owner = os.getpid()
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
        return self.process
