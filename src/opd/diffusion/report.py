"""Sample grids: what the student draws for a few prompts, always from the same noise, beside its teachers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from opd.diffusion.evaluation import pictures
from opd.diffusion.models import DenoisingModel
from opd.diffusion.pictures import grid
from opd.evaluation import SEED
from opd.loop import Loop, Scored
from opd.metrics import Metrics
from opd.report.look import handful
from opd.types import Prompt, Roller, Rollout


class Grids:
    """Watches a run and draws; a display and an observer of the run's log."""

    def __init__(
        self,
        *,
        folder: Path,
        model: DenoisingModel,
        student: Roller,
        teacher: Roller | None,
        prompts: Sequence[Prompt],
        number: int,
    ) -> None:
        self.folder = folder
        self.model = model
        self.student = student
        self.teacher = teacher
        self.prompts = handful(prompts, number)

    def start(self, loop: Loop) -> None: ...

    def scored(self, step: int, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> None: ...

    def step(self, step: int, metrics: Metrics) -> None: ...

    def evaluation(self, step: int, metrics: Metrics) -> None:
        drawn = pictures(self.model, self.student.rollout(self.prompts, SEED))
        (self.folder / "samples").mkdir(exist_ok=True)
        grid([list(drawn)], scale=4).save(self.folder / "samples" / f"{step:06d}.png")

    def event(self, step: int, kind: str, text: str) -> None: ...

    def stop(self) -> None: ...

    def finish(self) -> None: ...
