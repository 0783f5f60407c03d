"""A denoising run's folder as ``Grids`` writes it, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from opd.report.samples import GAP, SAMPLES, SHOWN, TEACHER, Samples

COLOURS = ("crimson", "seagreen", "royalblue", "goldenrod", "orchid", "teal", "sienna", "slategray")


def strip(colours: list[Any], side: int, *, ground: Any = "white") -> Any:
    """A row of squares with discs in them."""
    sheet = Image.new("RGB", (GAP + len(colours) * (side + GAP), side + 2 * GAP), "white")
    for column, colour in enumerate(colours):
        image = Image.new("RGB", (side, side), ground)
        ImageDraw.Draw(image).ellipse((side // 5, side // 5, side - side // 5, side - side // 5), colour)
        sheet.paste(image, (GAP + column * (side + GAP), GAP))
    return sheet


def write_grids(
    folder: Path,
    *,
    text: str = "a disc of one colour",
    prompts: int = 4,
    steps: tuple[int, ...] = (0, 20, 40),
    side: int = 64,
    teacher: bool = True,
    shown: int = 0,
    accuracy: bool = True,
) -> Path:
    """A run's folder, with any text in every place that data or a run file writes.

    The images of step s have the grey level s on the ground, so that a test can tell them apart.
    """
    folder.mkdir(parents=True)
    view = "image" if shown else "plain"
    config: dict[str, Any] = {
        "family": "diffusion",
        "student": text,
        "method": {"title": text, "summary": text, "source": text},
        "teacher": {"weights": {"type": "frozen"}, "model": text, "view": {"type": view}, "guidance": 1.5},
        "loss": {"signal": {"type": "prediction"}, "divergence": "velocity", "anchor": 0.1},
        "rollout": {
            "source": {"type": "student"},
            "prompts_per_step": 8,
            "rollouts_per_prompt": 1,
            "steps": 8,
            "sigmas": "even",
            "noise": 0.0,
        },
        "optimizer": {"lr": 1e-4},
        "eval": {"every": 20, "prompts": {"path": text}, "steps": None},
    }
    (folder / "run.json").write_text(json.dumps(config))
    lines: list[dict[str, Any]] = []
    for number, step in enumerate(steps):
        metrics = {"accuracy": 0.2 + 0.1 * number, f"accuracy/{text}": 0.3, "frechet": 9.0 - number}
        theirs = {"teacher_accuracy": 0.75, "teacher_frechet": 2.0}
        lines.append({"step": step, "eval": {**metrics, **theirs} if accuracy else {"distance": 3.0 - number}})
        lines.append({"step": step + 1, "train": {"loss": 1.0 / (number + 1), "spread": 0.5, text: 0.1}})
    lines.append({"step": steps[-1], "event": {"kind": "collapse", "text": text}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spread = [{"step": s, "loss": {"distill": [1.0 / (s + 1 + k) for k in range(7)] + [None]}} for s in steps]
    (folder / "states.jsonl").write_text("".join(json.dumps(line) + "\n" for line in spread))
    samples = Samples(folder / SAMPLES)
    columns = [{"text": f"{text} {n}", "domain": text} for n in range(prompts)]
    samples.describe(columns, columns[:shown])
    colours = [COLOURS[n % len(COLOURS)] for n in range(prompts)]
    for step in steps:
        samples.write(step, strip(colours, side, ground=(step % 256,) * 3))
    if teacher:
        samples.write(TEACHER, strip(colours, side, ground="lavender"))
    if shown:
        samples.write(SHOWN, strip(colours[:shown], side, ground="honeydew"))
    return folder
