"""A run file with its parts loaded: what the command line, Python and the doctor do with it is the same for all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from opd.build import assemble
from opd.config import BaseRun, DiffusionConfig, RunConfig
from opd.evaluation.doctor import findings
from opd.loop import Loop
from opd.output.model_card import model_card
from opd.output.run_folder import write_text
from opd.output.run_log import RunLog
from opd.parts import CONTEXT_FILE, Objects, Parts, gather
from opd.report.look import look_of
from opd.report.record import Recorder
from opd.report.rows import ROLLOUTS

if TYPE_CHECKING:
    from opd.api import Result


class Prepared(Protocol):
    """A run that has everything it needs and has not begun."""

    @property
    def config(self) -> BaseRun: ...

    def assemble(self, log: RunLog) -> Loop:
        """The loop, ready to run from step 0."""
        ...

    def recorder(self, loop: Loop) -> Any | None:
        """What watches the loop for the report; None where the run file leaves it out."""
        ...

    def card(self, result: Result) -> str:
        """The README.md of the finished run."""
        ...

    def findings(self) -> Iterator[str]:
        """What `opd doctor` says, a line each."""
        ...


@dataclass(frozen=True)
class Language:
    """A run of a causal language model."""

    parts: Parts

    @property
    def config(self) -> RunConfig:
        return self.parts.config

    def assemble(self, log: RunLog) -> Loop:
        if self.parts.context:
            write_text(Path(self.config.out) / CONTEXT_FILE, self.parts.context + "\n")
        return assemble(self.parts, log)

    def recorder(self, loop: Loop) -> Recorder | None:
        config, parts = self.config, self.parts
        if config.report is None:
            return None
        path = Path(config.out) / ROLLOUTS
        return Recorder(loop, parts.student, look_of(parts), path, config.report.top_k, parts.vocab_size)

    def card(self, result: Result) -> str:
        config = self.config
        several = ", ".join(f"{name} ({expert.model})" for name, expert in (config.teacher.models or {}).items())
        teacher = several or config.teacher.model or f"the student's own weights ({config.teacher.weights})"
        facts = [
            f"Teacher: {teacher}; view: {config.teacher.view.kind}",
            f"Loss: {config.loss.divergence}, anchor {config.loss.anchor}",
            f"{result.steps} steps, {result.tokens:,} student tokens, {result.seconds:.0f} s",
        ]
        return model_card(config, result, library="transformers", facts=facts)

    def findings(self) -> Iterator[str]:
        return findings(self.parts)


def prepare(config: RunConfig | DiffusionConfig, objects: Objects) -> Prepared:
    """Load everything a run names and check that it fits together.

    Raises:
        OpdError: the first thing that does not, in one sentence.
    """
    if isinstance(config, DiffusionConfig):
        from opd.diffusion.run import DenoisingRun

        return DenoisingRun.load(config, objects)
    return Language(gather(config, objects))
