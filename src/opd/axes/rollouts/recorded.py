"""The initial student's rollouts with the teacher's log-probabilities, made once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from opd.axes.context import RunContext
from opd.axes.rollouts.base import SourceConfig

if TYPE_CHECKING:
    from opd.types import RolloutSource, Term

RECORDED_FILE = "recorded.jsonl"
"""In the run's folder; a resumed run reads it back."""


class Recorded(SourceConfig):
    """Roll out and score a number of prompts before the first step (Lightning OPD, arXiv 2604.13010)."""

    type: Literal["recorded"] = "recorded"
    prompts: int = Field(ge=1)
    """Number of training prompts, the first ones."""

    def needs(self) -> dict[str, tuple[str, ...]]:
        """One teacher that stays as it is, and a signal that can be recorded."""
        return {"": ("recordable signal", "one teacher", "fixed teacher")}

    @property
    def first_prompts(self) -> int | None:
        """The recorded ones."""
        return self.prompts

    def words(self) -> str:
        """The source's cell in the map."""
        return f"student, once ({self.prompts} prompts)"

    def build(self, run: RunContext) -> RolloutSource:
        """The sampler that makes the recording."""
        return run.source("student")

    def attach(self, run: RunContext, terms: Sequence[Term]) -> tuple[RolloutSource, list[Term]]:
        """The recording as rollout source, and as view and teacher of the main term."""
        from dataclasses import replace

        from opd.rollouts import recorded

        main, path = terms[0], Path(run.config.out) / RECORDED_FILE
        if not run.world.first(path.exists, "recorded rollouts"):
            assert main.view is not None
            takes = recorded.record(
                self.build(run),
                recorded.scorer(main),
                main.view,
                run.prompts[: self.prompts],
                samples=run.config.rollout.rollouts_per_prompt,
                batch=run.config.rollout.prompts_per_step,
                seed=run.config.seed,
            )
            run.world.first(lambda: recorded.save(takes, path), "recorded rollouts")
        recording = recorded.Recording(recorded.load(path, run.prompts))
        return recording, [replace(main, teacher=recording, view=recording), *terms[1:]]
