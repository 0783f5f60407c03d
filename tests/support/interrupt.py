"""What stops a run from outside, for tests of resuming."""

from __future__ import annotations

from collections.abc import Mapping

from opd.loop import Loop


class Interrupt:
    """A display that stops a run the hard way."""

    def __init__(self, at: int) -> None:
        self.at = at

    def start(self, loop: Loop) -> None: ...

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.at:
            raise KeyboardInterrupt

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def event(self, step: int, kind: str, text: str) -> None: ...

    def stop(self) -> None: ...
