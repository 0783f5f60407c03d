"""The process of a stage, seen from the one that started it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

GRACE_S = 5.0
"""From asking a process to end to ending it."""


class Worker:
    """A running stage. Its stdin stays open as long as we live, and it ends when that closes.

    Args:
        job: what ``opd.pipelines.worker`` is to do.
        log: file for what it prints.
    """

    def __init__(self, job: Mapping[str, Any], log: Path) -> None:
        self.log = log
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "opd.pipelines.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, "PYTHONPATH": paths},
                start_new_session=True,  # an interrupt in the terminal is ours to pass on
            )
        assert self.process.stdin
        with suppress(BrokenPipeError):  # it is over already, and its status says why
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()

    def answer(self) -> str | None:
        """None while it runs; then why it failed, or nothing."""
        if self.process.poll() is None:
            return None
        assert self.process.stdout
        said = self.process.stdout.read().decode()
        self.stop()
        if self.process.returncode == 0:
            return said
        return f"{said or f'its process ended with status {self.process.returncode}'} (its log is '{self.log}')"

    def stop(self) -> None:
        """End it, if it still runs."""
        self.process.terminate()
        try:
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            with suppress(BrokenPipeError):
                pipe.close()
