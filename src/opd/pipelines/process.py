"""The parent's side of a stage's process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

GRACE_S = 5.0
"""Seconds between SIGTERM and SIGKILL."""


class Worker:
    """A running stage. The process ends when its stdin closes, that is when this process ends.

    Args:
        job: the input of ``opd.pipelines.worker``.
        log: file for its stdout and stderr.
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
                start_new_session=True,  # the parent alone handles an interrupt in the terminal
            )
        assert self.process.stdin
        with suppress(BrokenPipeError):  # the process has already ended; its exit status has the reason
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()

    def answer(self) -> str | None:
        """None while the process runs; then the error, empty on success."""
        if self.process.poll() is None:
            return None
        assert self.process.stdout
        answer = self.process.stdout.read().decode()
        self.stop()
        if self.process.returncode == 0:
            return answer
        return f"{answer or f'its process ended with status {self.process.returncode}'} (its log is '{self.log}')"

    def stop(self) -> None:
        """End the process if it still runs."""
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


def end_all(workers: Sequence[Worker]) -> None:
    """Ask processes to end and wait until they have: a training stage finishes its step and saves a checkpoint."""
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.wait()
