"""``make demo-diffusion``: three task teachers become one student, and a two-step student learns a new concept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.text import Text
from torch import Tensor

import opd
from opd.diffusion.images import image_of, to_pixels, to_tensor
from opd.nano.images.world import SIZE
from opd.nano.tasks.images import Images
from opd.output.terminal import run_display, show_result
from opd.report.samples import SAMPLES, TEACHER, Samples

STORIES = {
    "diffusion-opd": (
        "three teachers, one student",
        "The base model draws shapes, dots and digits, but often not the ones in the prompt. Each of three teachers "
        "follows the prompts of its own domain. The student samples its own trajectories, and at every step the "
        "teacher of that domain predicts the next state.",
    ),
    "d-opsd": (
        "a new concept for a two-step student",
        "This student samples in two steps, and has never seen 'zorp' without an image of it. Its teacher is the same "
        "model, conditioned on one of twelve images; the student sees the word alone.",
    ),
}


def main(
    out: Annotated[
        str, typer.Option(help="Folder of both runs; the previous demo's folder is replaced.")
    ] = "runs/demo-diffusion",
    steps: Annotated[int | None, typer.Option(help="Optimizer steps; by default those of the recipes.")] = None,
) -> None:
    """Train both recipes on the bundled pipelines, and show sample images."""
    console = Console()
    shutil.rmtree(out, ignore_errors=True)
    for name, (title, story) in STORIES.items():
        console.rule(f"[bold]{name}: {title}")
        console.print(story + "\n")
        if name == "d-opsd":
            shown = [p for prompt in Images().prompts("concept/train") if (p := image_of(prompt)) is not None]
            console.print(in_blocks(shown, console.width))
        folder = Path(out) / name
        overrides = {"out": str(folder)} | ({"optimizer.steps": steps} if steps else {})
        result = opd.train(name, overrides, callbacks=[run_display(console)])
        show_result(console, result)
        console.print(f"images   {folder}/{SAMPLES}/overview.png\n")
        for label, strip in strips(Samples(folder / SAMPLES)):
            console.print(f"[bold]{label}[/]")
            console.print(in_blocks(strip, console.width))


def strips(samples: Samples) -> Iterator[tuple[str, list[Tensor]]]:
    """Sample images before and after training and of the teachers, at their original size."""
    steps = samples.steps
    named: dict[str, int | str] = {"before": steps[0], "after": steps[-1], "the teachers": TEACHER}
    for label, name in named.items():
        if samples.has(name):
            yield label, [to_tensor(image.resize((SIZE, SIZE), resample=0)) for image in samples.images(name)]


def in_blocks(images: list[Tensor], width: int) -> Text:
    """Images [3, H, W] side by side for a terminal, two pixels per character; only as many as fit."""
    images = images[: max(width // (SIZE + 1), 1)]
    gap = torch.full((3, images[0].shape[1], 1), -1.0)
    sheet = to_pixels(torch.cat([part for image in images for part in (image, gap)], 2))
    text = Text()
    for upper, lower in zip(sheet[::2], sheet[1::2], strict=True):
        for (r, g, b), (s, t, u) in zip(upper.tolist(), lower.tolist(), strict=True):
            text.append("▀", style=f"rgb({r},{g},{b}) on rgb({s},{t},{u})")
        text.append("\n")
    return text


if __name__ == "__main__":
    typer.run(main)
