"""Runs whose loop is altered before it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd import Result, api
from opd.axes.base import Objects
from opd.config.read import read
from opd.config.run import BaseRun
from opd.loop import Loop
from opd.output.run_log import RunLog
from opd.running import Run, start
from opd.types import Prompt


@dataclass(frozen=True)
class AlteredRun:
    """Another run with another loop."""

    run: Run
    alter: Callable[[Loop], Loop]

    @property
    def config(self) -> BaseRun:
        return self.run.config

    @property
    def data(self) -> Mapping[str, Sequence[Prompt]]:
        return self.run.data

    @property
    def models(self) -> Mapping[str, str | list[float]]:
        return self.run.models

    def assemble(self, log: RunLog) -> Loop:
        return self.alter(self.run.assemble(log))

    def recorder(self, loop: Loop) -> Any | None:
        return self.run.recorder(loop)

    def card(self, result: Result) -> str:
        return self.run.card(result)

    def findings(self) -> Iterator[str]:
        return self.run.findings()


def train_altered(
    alter: Callable[[Loop], Loop] | None,
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    callbacks: Sequence[Any] = (),
    **objects: Any,
) -> Result:
    """``opd.train`` with the loop that ``alter`` makes of the assembled one; None leaves it as it is."""
    given = Objects(**objects)
    config = read(source, given.keys() | dict(overrides or {}))
    changed = alter or (lambda loop: loop)
    return start(config, lambda: AlteredRun(api.load(config, given), changed), resume=resume, callbacks=callbacks)
