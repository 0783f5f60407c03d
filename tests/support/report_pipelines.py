"""Tiny pipelines for 8 × 8 images, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from opd.diffusion.folders import save_pipeline


def make_pipeline(folder: Path, seed: int) -> Path:
    """A random U-Net of a few thousand parameters with DDIM's scheduler, as a folder."""
    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        dropout=0.1,  # so that a model left in training mode shows
    )
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(2)
    scheduler = DDIMScheduler(num_train_timesteps=100, clip_sample=False)
    save_pipeline(DDIMPipeline(unet=unet, scheduler=scheduler), folder)
    return folder


def write_prompts(path: Path, texts: list[str]) -> Path:
    rows = [{"prompt": text, "domain": text.split()[-1]} for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_file(folder: Path, **more: Any) -> dict[str, Any]:
    """Four steps towards a teacher model, with an evaluation after every second step."""
    student, teacher = folder / "student", folder / "teacher"
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        make_pipeline(student, 0)
        make_pipeline(teacher, 1)
        write_prompts(prompts, ["red disc", "blue disc", "red square", "a <b>blue</b> square"])
    base: dict[str, Any] = {
        "family": "diffusion",
        "student": str(student),
        "teacher": {"model": str(teacher)},
        "prompts": str(prompts),
        "rollout": {"prompts_per_step": 4, "steps": 3},
        "optimizer": {"lr": 1e-2, "steps": 4},
        "eval": {"prompts": str(prompts), "every": 2},
        "checkpoint": {"every": 2},
        "report": {"prompts": 3},
        "log": [],
        "out": str(folder / "out"),
    }
    return base | more
