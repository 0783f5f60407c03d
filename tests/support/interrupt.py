"""What stops a run from outside, for tests of resuming."""

from __future__ import annotations

from collections.abc import Mapping


class Interrupt:
    """A callback that stops a run the hard way."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.at:
            raise KeyboardInterrupt
