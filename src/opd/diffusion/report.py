"""Sample grids: what the student draws for a few prompts, always from the same noise, beside its teachers.

Beside them a line per look at the loss: how it is spread over the states of a trajectory. Nothing here changes a run:
noise comes from generators of its own, and no weight and no state is touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from opd.diffusion.conditioning import text_of
from opd.diffusion.evaluation import decoded_images
from opd.diffusion.forward import trajectories_of
from opd.diffusion.images import grid, image_of, to_pixels
from opd.diffusion.models import DenoisingModel
from opd.errors import DataError
from opd.evaluation.evaluate import SEED
from opd.loop import Loop
from opd.output.run_log import RunStart, rewind
from opd.report.files import STATES
from opd.report.overview import Block, overview
from opd.report.page import write_report
from opd.report.preview import spaced_prompts
from opd.report.samples import GAP, SAMPLES, SHOWN, TEACHER, Column, Samples
from opd.types import Metrics, Prompt, Rollout, RolloutSource, Scored

SIZE = (64, 512)
"""Pixels that a image of a strip is at least and at most wide."""


class Grids:
    """Watches a run and draws; a display and an observer of the run's log.

    Args:
        folder: the run's; images go to ``samples`` in it.
        model: turns latents into images.
        student: draws with the student as it is.
        teacher: draws with the teachers; None where they are the student's own weights.
        prompts: some of these are drawn.
        number: so many.
        loop: the run.
        shown: training prompts whose images the teacher sees.
    """

    def __init__(
        self,
        *,
        folder: Path,
        model: DenoisingModel,
        student: RolloutSource,
        teacher: RolloutSource | None,
        prompts: Sequence[Prompt],
        number: int,
        loop: Loop,
        shown: Sequence[Prompt] = (),
    ) -> None:
        self.folder = folder
        self.samples = Samples(folder / SAMPLES)
        self.model = model
        self.student = student
        self.teacher = teacher
        self.prompts = spaced_prompts(prompts, number)
        self.shown = spaced_prompts(shown, number)
        self.loop = loop
        self.said: tuple[int, Sequence[Rollout], Sequence[Scored]] | None = None
        self.kept: int | None = None

    def start(self, run: RunStart) -> None:
        """Forget what was drawn and written after the step that the run goes on from."""
        state = self.loop.state
        same = self.samples.prompts == columns(self.prompts) and self.samples.shown == columns(self.shown)
        self.samples.forget(state.step if same and (state.before or state.step) else -1)
        self.samples.describe(columns(self.prompts), columns(self.shown))
        rewind(self.folder / STATES, state.step - 1)  # a line of the step itself comes anew
        if self.shown and not self.samples.has(SHOWN):
            self.samples.write(SHOWN, references(self.shown))
        if self.loop.evaluate is None and not state.step:
            self._draw(0)

    def scored(self, step: int, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> None:
        """A training batch before its update, which fills in the losses of its states."""
        if not step and not self.loop.state.before:
            self._draw(0)  # the evaluation had nothing to measure
        if step % self.loop.evaluate_every == 0 or step == self.loop.steps - 1:
            self.said = step, rollouts, scored

    def step(self, step: int, metrics: Metrics) -> None:
        """The update was made; where no evaluation says that it is time to draw, the step does."""
        if self.said:
            self._spread(*self.said)
            self.said = None
        due = step % self.loop.evaluate_every == 0 or step == self.loop.steps
        if due and not self.loop.state.before and self.loop.optimizer.finite():
            self._draw(step)

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """Draw with the weights that were just measured."""
        self._draw(step)

    def event(self, step: int, kind: str, text: str) -> None: ...

    def finish(self) -> None:
        """A run that collapsed kept the weights of its best step."""
        state = self.loop.state
        if (state.stopped_by not in (None, "idle") or state.rollbacks) and state.best:
            self.kept = state.best_step

    def stop(self) -> None:
        """The run is over, well or badly: leave overview and page. No full disk may hide why a run ended."""
        with suppress(OSError, DataError):
            if self.samples.steps:
                self.samples.write("overview", overview(list(self._blocks())))
            write_report(self.folder)

    def _draw(self, step: int) -> None:
        """The student's strip of a step, and once the teachers'."""
        if not self.samples.has(step):
            self.samples.write(step, self._strip(self.student))
        if self.teacher and not self.samples.has(TEACHER):
            self.samples.write(TEACHER, self._strip(self.teacher))

    def _strip(self, roller: RolloutSource) -> Any:
        drawn = decoded_images(self.model, roller.rollout(self.prompts, SEED))
        least, most = SIZE
        height, width = drawn.shape[-2:]
        if max(height, width) > most:
            share = most / max(height, width)
            size = max(round(height * share), 1), max(round(width * share), 1)
            drawn = nn.functional.interpolate(drawn, size, mode="area")
        return grid([list(drawn)], scale=max(-(-least // min(drawn.shape[-2:])), 1), gap=GAP)

    def _spread(self, step: int, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> None:
        """A line of each term's mean loss by state, where there are trajectories and losses."""
        spread = {said.term.name: by_state(said, rollouts) for said in scored}
        line = {name: means for name, means in spread.items() if any(mean is not None for mean in means)}
        if line:
            with (self.folder / STATES).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "loss": line}) + "\n")

    def _blocks(self) -> Iterator[Block]:
        """Before, in between, after and the teacher; then what the teacher sees."""
        steps = self.samples.steps
        after = self.kept if self.kept in steps else steps[-1]
        walked = [step for step in steps if step <= after]
        names = {walked[len(walked) // 2]: "in between", after: "after", walked[0]: "first" if walked[0] else "before"}
        rows = [(f"{names[s]}, step {s}", self.samples.images(s)) for s in sorted(names)]
        if self.samples.has(TEACHER):
            rows.append((TEACHER, self.samples.images(TEACHER)))
        yield Block([prompt["text"] for prompt in self.samples.prompts], rows)
        if self.samples.has(SHOWN):
            texts = [prompt["text"] for prompt in self.samples.shown]
            yield Block(texts, [("shown to the teacher", self.samples.images(SHOWN))])


def columns(prompts: Sequence[Prompt]) -> list[Column]:
    """What there is to say about the columns of a strip."""
    return [{"text": text_of(prompt), "domain": prompt.domain} for prompt in prompts]


def references(prompts: Sequence[Prompt]) -> Any:
    """A strip of prompts' own images, of whatever sizes, in squares."""
    found = [image_of(prompt) for prompt in prompts]
    images = [Image.fromarray(to_pixels(image)) for image in found if image is not None]
    least, most = SIZE
    side = min(max(least, *(max(image.size) for image in images)), most)
    sheet = Image.new("RGB", (GAP + len(images) * (side + GAP), side + 2 * GAP), "white")
    for column, image in enumerate(images):
        small = max(image.size) * 2 <= side
        how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
        sheet.paste(ImageOps.pad(image, (side, side), how, color="white"), (GAP + column * (side + GAP), GAP))
    return sheet


def by_state(said: Scored, rollouts: Sequence[Rollout]) -> list[float | None]:
    """A term's mean loss at the first state of trajectories, the second and so on; None where it has none.

    States of noised images are at random steps, so their places mean nothing and they are left out.
    """
    known = trajectories_of(rollouts)
    walked_B = torch.tensor([t.steps == tuple(range(len(t.steps))) for t in known])
    loss_T, signal = said.loss_T.double().cpu(), said.signal
    position_T = signal.position_T.cpu()
    counts_T = walked_B[signal.rollout_T.cpu()] & loss_T.isfinite()
    return [_mean(loss_T[counts_T & (position_T == k)]) for k in range(max(len(t.steps) for t in known))]


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None
