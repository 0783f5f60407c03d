"""Sample grids of a run: images of a few prompts from the same noise, by the student and its teachers.

``states.jsonl`` records the loss at each state of a trajectory. Nothing here changes a run: the noise comes from its
own generators, and no weight or state is modified.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
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
from opd.evaluation.evaluate import SEED
from opd.loop import Loop
from opd.output.callbacks import RunStart
from opd.output.run_log import rewind
from opd.report.files import STATES
from opd.report.overview import Block, overview
from opd.report.page import said_if_not_written, write_report
from opd.report.preview import spaced_prompts
from opd.report.samples import GAP, SAMPLES, SHOWN, TEACHER, Column, Samples
from opd.types import Metrics, Prompt, Rollout, RolloutSource, Scored

SIZE = (64, 512)
"""Smallest and largest width of a strip's images, pixels."""


class Grids:
    """Writes sample grids during a run; a display and an observer of the run's log.

    Args:
        folder: of the run; images are written to its ``samples``.
        model: decodes latents to images.
        student: samples with the student's current weights.
        teacher: samples with the teachers; None for a self-teacher.
        prompts: some of these are shown.
        number: the number of prompts shown.
        loop: of the run.
        shown: training prompts with images that the teacher sees.
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
        self.recorded: tuple[int, Sequence[Rollout], Sequence[Scored]] | None = None
        self.kept: int | None = None

    def start(self, run: RunStart) -> None:
        """Delete images and lines after the step at which the run starts or resumes."""
        state = self.loop.state
        same = self.samples.prompts == columns(self.prompts) and self.samples.shown == columns(self.shown)
        self.samples.forget(state.step if same and (state.before or state.step) else -1)
        self.samples.describe(columns(self.prompts), columns(self.shown))
        rewind(self.folder / STATES, state.step - 1)  # the step's own line is written again
        if self.shown and not self.samples.has(SHOWN):
            self.samples.write(SHOWN, references(self.shown))
        if self.loop.evaluate is None and not state.step:
            self._sample(0)

    def scored(self, step: int, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> None:
        """Remember a training batch; its update fills in the losses of its states."""
        if not step and not self.loop.state.before:
            self._sample(0)  # there was no evaluation before the first step
        if step % self.loop.evaluate_every == 0 or step == self.loop.steps - 1:
            self.recorded = step, rollouts, scored

    def step(self, step: int, metrics: Metrics) -> None:
        """Write the losses by state; sample images if the run has no evaluations."""
        if self.recorded:
            self._losses_by_state(*self.recorded)
            self.recorded = None
        due = step % self.loop.evaluate_every == 0 or step == self.loop.steps
        if due and not self.loop.state.before and self.loop.optimizer.finite():
            self._sample(step)

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """Sample images with the measured weights."""
        self._sample(step)

    def event(self, step: int, kind: str, text: str) -> None: ...

    def finish(self) -> None:
        """Note the best step, if the run kept its weights."""
        state = self.loop.state
        if state.ends_with_best:
            self.kept = state.best_step

    def stop(self) -> None:
        """Write the overview and the page. A full disk does not hide the error that ended the run."""
        with said_if_not_written(self.loop):
            if self.samples.steps:
                self.samples.write("overview", overview(list(self._blocks())))
            write_report(self.folder)

    def _sample(self, step: int) -> None:
        """Write the student's strip of a step, and the teachers' strip once."""
        if not self.samples.has(step):
            self.samples.write(step, self._strip(self.student))
        if self.teacher and not self.samples.has(TEACHER):
            self.samples.write(TEACHER, self._strip(self.teacher))

    def _strip(self, source: RolloutSource) -> Any:
        images = decoded_images(self.model, source.rollout(self.prompts, SEED))
        least, most = SIZE
        height, width = images.shape[-2:]
        if max(height, width) > most:
            share = most / max(height, width)
            size = max(round(height * share), 1), max(round(width * share), 1)
            images = nn.functional.interpolate(images, size, mode="area")
        return grid([list(images)], scale=max(-(-least // min(images.shape[-2:])), 1), gap=GAP)

    def _losses_by_state(self, step: int, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> None:
        """Append a line with each term's mean loss by state, if any term has one."""
        losses = {one.term.name: by_state(one, rollouts) for one in scored}
        line = {name: means for name, means in losses.items() if any(mean is not None for mean in means)}
        if line:
            with (self.folder / STATES).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "loss": line}) + "\n")

    def _blocks(self) -> Iterator[Block]:
        """The overview: images before, in between, after, and the teacher's; then the images that the teacher sees."""
        steps = self.samples.steps
        after = self.kept if self.kept in steps else steps[-1]
        earlier = [step for step in steps if step <= after]
        names = {
            earlier[len(earlier) // 2]: "in between",
            after: "after",
            earlier[0]: "first" if earlier[0] else "before",
        }
        rows = [(f"{names[s]}, step {s}", self.samples.images(s)) for s in sorted(names)]
        if self.samples.has(TEACHER):
            rows.append((TEACHER, self.samples.images(TEACHER)))
        yield Block([prompt["text"] for prompt in self.samples.prompts], rows)
        if self.samples.has(SHOWN):
            texts = [prompt["text"] for prompt in self.samples.shown]
            yield Block(texts, [("shown to the teacher", self.samples.images(SHOWN))])


def columns(prompts: Sequence[Prompt]) -> list[Column]:
    """The prompt of each column of a strip."""
    return [{"text": text_of(prompt), "domain": prompt.domain} for prompt in prompts]


def references(prompts: Sequence[Prompt]) -> Any:
    """A strip of the prompts' own images, each padded to a square."""
    found = [image_of(prompt) for prompt in prompts]
    images = [Image.fromarray(to_pixels(image)) for image in found if image is not None]
    least, most = SIZE
    side = min(max(least, *(max(image.size) for image in images)), most)
    sheet = Image.new("RGB", (GAP + len(images) * (side + GAP), side + 2 * GAP), "white")
    for column, image in enumerate(images):
        small = max(image.size) * 2 <= side
        resampling = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
        sheet.paste(ImageOps.pad(image, (side, side), resampling, color="white"), (GAP + column * (side + GAP), GAP))
    return sheet


def by_state(scored: Scored, rollouts: Sequence[Rollout]) -> list[float | None]:
    """A term's mean loss at each state of a trajectory, first to last; None for a state without a loss.

    Noised images are left out: their states are at random noise levels, not at the steps of a trajectory.
    """
    trajectories = trajectories_of(rollouts)
    sampled_B = torch.tensor([t.steps == tuple(range(len(t.steps))) for t in trajectories])
    loss_T, signal = scored.loss_T.double().cpu(), scored.signal
    position_T = signal.position_T.cpu()
    counts_T = sampled_B[signal.rollout_T.cpu()] & loss_T.isfinite()
    return [_mean(loss_T[counts_T & (position_T == k)]) for k in range(max(len(t.steps) for t in trajectories))]


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None
