"""Whether two LaTeX expressions are equal, by math-verify in a process of its own."""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from threading import Lock

WORKER = Path(__file__).with_name("maths_worker.py")

LONGEST = 1000
"""Characters of an expression above which it is not compared: no answer is that long."""


class _Worker:
    """A process that is started on first use, and again after it was ended; any thread may ask."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.process: subprocess.Popen[str] | None = None
        self.owner = 0

    def equal(self, answer: str, reference: str) -> bool:
        """Its verdict; False if the comparison took more time or memory than it may."""
        with self.lock:
            process = self._running()
            assert process.stdin
            assert process.stdout
            try:
                process.stdin.write(json.dumps([answer, reference]) + "\n")
                process.stdin.flush()
                reply = process.stdout.readline()
            except BrokenPipeError:
                reply = ""
            if not reply:
                self.stop()
            return reply.strip() == "true"

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
                [sys.executable, "-P", "-W", "ignore", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
        return self.process


_WORKER = _Worker()
atexit.register(_WORKER.stop)


@lru_cache(maxsize=65_536)
def equal(answer: str, reference: str) -> bool:
    """Whether two LaTeX expressions are equal; False where that cannot be decided within three seconds of computing."""
    return max(len(answer), len(reference)) <= LONGEST and _WORKER.equal(answer, reference)


def latex(text: str) -> str:
    """A cleaned text with plain-text notation in LaTeX's: ``sqrt(2)``, ``x**2``, ``x^10``, ``<=``, ``pi``."""
    text = text.replace("**", "^").replace("<=", r"\le ").replace(">=", r"\ge ")
    text = re.sub(r"(?<!\\)\bsqrt\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\^(-?\d{2,}|-\d|\([^()]*\))", r"^{\1}", text)
    return re.sub(r"(?<![\\A-Za-z])(pi|sin|cos|tan|log|ln|exp)\b", r"\\\1", text)
