"""What the workers of the step benchmark share. Needs the standard library alone."""

from __future__ import annotations

import resource
from pathlib import Path

MB = 1e6


class Memory:
    """Most memory of the process beyond what it held before its first step, on Linux."""

    def __init__(self) -> None:
        self.before: float | None = None

    def start(self) -> None:
        """Before a step; the first call counts."""
        if self.before is None:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.before = pages * resource.getpagesize() / MB

    def peak(self) -> float:
        """MB."""
        assert self.before is not None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB - self.before
