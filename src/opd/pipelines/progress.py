"""How far each stage is, read from the files that its process writes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from opd.pipelines.graph import Stage

State = Literal["waiting", "running", "done", "unchanged", "failed", "collapsed", "blocked"]

FINAL = frozenset({"done", "unchanged"})
"""States in which a stage's model can be used."""

LOST = frozenset({"failed", "collapsed", "blocked"})
"""States in which it cannot."""

MAIN = ("accuracy", "reverse_kl", "text_loss")
"""The figure to show where there is room for one, the first that is there."""


@dataclass
class Row:
    """A stage as it is shown."""

    stage: Stage
    state: State = "waiting"
    step: int = 0
    first: dict[str, float] = field(default_factory=dict)
    """Validation at the start."""
    now: dict[str, float] = field(default_factory=dict)
    event: str = ""
    """What happened last."""
    problem: str = ""
    """Why it failed, as a sentence."""
    begun: float | None = None
    record: Mapping[str, Any] | None = None
    """stage.json, once there is one."""

    @property
    def result(self) -> Mapping[str, Any]:
        """What the stage came to, so far as it is over."""
        return self.record["result"] if self.record else {}

    @property
    def seconds(self) -> float:
        """Of a training run those in steps, in whichever start; of another stage, those that it took."""
        if self.record:
            return float(self.result["seconds"])
        return time.monotonic() - self.begun if self.begun is not None else 0.0

    def finish(self, record: Mapping[str, Any], state: State) -> None:
        """Take over what stage.json says."""
        self.record, self.state, self.step = record, state, self.result.get("steps", self.stage.steps)
        if self.stage.kind == "train":
            self.first, self.now = self.result["before"], self.result["after"]

    def follow(self, line: Mapping[str, Any]) -> bool:
        """Take over a line of metrics.jsonl; True if it is a validation."""
        self.step = line["step"]
        if "event" in line:
            self.event = f"{line['event']['kind']}: {line['event']['text']}"
        if "eval" in line:
            self.now = line["eval"]
            self.first = self.first or self.now
        return "eval" in line


class Tail:
    """The lines that are new in a file that another process appends to, and at times begins again.

    Args:
        path: metrics.jsonl.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def lines(self) -> Iterator[dict[str, Any]]:
        """Whole lines since the last call."""
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
        for line in whole.splitlines():
            try:
                yield json.loads(line)
            except ValueError:  # the file began again while it was read
                continue


def main_figure(metrics: Mapping[str, float]) -> str | None:
    """Name of the figure that stands for all."""
    return next((name for name in MAIN if name in metrics), None)
