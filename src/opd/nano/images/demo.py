"""``make demo-diffusion``: three task teachers become one student, and a two-step student learns a new word."""

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
from opd.output.terminal import LiveDisplay, show_result
from opd.report.samples import SAMPLES, TEACHER, Samples

STORIES = {
    "diffusion-opd": (
        "three teachers, one student",
        "The base draws shapes, dots and digits, and does not do as it is told. Three teachers do, each in its own "
        "domain. The student denoises its own images, and at every step the teacher of that prompt says where it "
        "would have gone.",
    ),
    "d-opsd": (
        "a new word for a two-step student",
        "This student draws in two steps, and has never seen 'zorp' without a image of it. Its teacher is itself, "
        "with one of twelve images in view; the student sees the word alone.",
    ),
}


def main(
    out: Annotated[
        str, typer.Option(help="Folder of both runs; an earlier demo's is replaced.")
    ] = "runs/demo-diffusion",
    steps: Annotated[int | None, typer.Option(help="Optimizer steps; by default the recipes'.")] = None,
) -> None:
    """Train both recipes on the bundled pipelines, and show what they draw."""
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
        result = opd.train(name, overrides, displays=[LiveDisplay(console)])
        show_result(console, result)
        console.print(f"images {folder}/{SAMPLES}/overview.png\n")
        for label, strip in strips(Samples(folder / SAMPLES)):
            console.print(f"[bold]{label}[/]")
            console.print(in_blocks(strip, console.width))


def strips(samples: Samples) -> Iterator[tuple[str, list[Tensor]]]:
    """What was drawn before and after, and by the teachers, in the images' own size."""
    steps = samples.steps
    named: dict[str, int | str] = {"before": steps[0], "after": steps[-1], "the teachers": TEACHER}
    for label, name in named.items():
        if samples.has(name):
            yield label, [to_tensor(image.resize((SIZE, SIZE), resample=0)) for image in samples.images(name)]


def in_blocks(images: list[Tensor], width: int) -> Text:
    """As many small images [3, H, W] beside each other as a terminal has room for, two pixels a character."""
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
