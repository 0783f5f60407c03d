"""Progress of each stage, read from the files that its process writes, and the protocol of displays."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from opd.data.strict_json import parse
from opd.pipelines.graph import Stage
from opd.report.files import measured

State = Literal["waiting", "running", "done", "unchanged", "failed", "collapsed", "blocked"]

FINAL = frozenset({"done", "unchanged"})
"""States of stages whose model can be used."""

LOST = frozenset({"failed", "collapsed", "blocked"})
"""States of stages whose model cannot be used."""


@dataclass
class Row:
    """A stage with its progress."""

    stage: Stage
    state: State = "waiting"
    step: int = 0
    first: dict[str, float] = field(default_factory=dict)
    """Metrics of the first evaluation."""
    now: dict[str, float] = field(default_factory=dict)
    """Metrics of the last evaluation."""
    event: str = ""
    """The last event, as a sentence."""
    problem: str = ""
    """The reason of a failure, as a sentence; empty without one."""
    begun: float | None = None
    record: Mapping[str, Any] | None = None
    """Content of stage.json; None until the stage is done."""

    @property
    def result(self) -> Mapping[str, Any]:
        """Result of a finished stage; empty before."""
        return self.record["result"] if self.record else {}

    @property
    def seconds(self) -> float:
        """Training time of a run over all starts, or duration of another stage; until then the time since its start."""
        if self.record:
            return float(self.result["seconds"])
        return time.monotonic() - self.begun if self.begun is not None else 0.0

    def finish(self, record: Mapping[str, Any], state: State) -> None:
        """Set the state from stage.json."""
        self.record, self.state, self.step = record, state, self.result.get("steps", self.stage.steps)
        if self.stage.kind == "train":
            self.first, self.now = measured(self.result["before"]), measured(self.result["after"])

    def follow(self, line: Mapping[str, Any]) -> bool:
        """Update from a line of metrics.jsonl; returns whether it is an evaluation."""
        self.step = line["step"]
        if "event" in line:
            self.event = f"{line['event']['kind']}: {line['event']['text']}"
        if "eval" in line:
            self.now = measured(line["eval"])
            self.first = self.first or self.now
        return "eval" in line


class Tail:
    """Reads new lines of a file that another process appends to or starts again.

    Args:
        path: metrics.jsonl.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def lines(self) -> Iterator[dict[str, Any]]:
        """Complete lines since the last call."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self.offset:
                    self.offset = 0
                file.seek(self.offset)
                new = file.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.split(b"\n")[:-1]:
            try:
                yield parse(line)
            except ValueError:  # the file was started again during the read
                continue


class Display(Protocol):
    """Shows the progress of a pipeline; the runner calls it."""

    def start(self, rows: Mapping[str, Row]) -> None:
        """Called once, before the first stage starts."""
        ...

    def changed(self, row: Row) -> None:
        """Called after a stage has changed its state."""
        ...

    def validated(self, row: Row) -> None:
        """Called after a running stage has evaluated its model."""
        ...

    def stop(self) -> None:
        """Called once, at the end."""
        ...
