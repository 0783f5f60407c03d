"""Pipelines as folders, in diffusers' own layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers.utils.logging as of_diffusers
import torch
import transformers.utils.logging as of_transformers

from opd.bundled import resolve


def load_pipeline(folder: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline in a folder, or the bundled one of that name (``nano/pictures-base``).

    Components that the folder says it lacks are passed as None: ``from_pretrained`` insists on an answer for those
    which its class does not call optional, such as Stable Diffusion 3's third text encoder.
    """
    from diffusers import DiffusionPipeline

    path = resolve(str(folder))
    index = Path(path) / "model_index.json"
    known = json.loads(index.read_text()) if index.is_file() else {}
    absent = {name: None for name, value in known.items() if isinstance(value, list) and value[0] is None}
    with quiet():
        return DiffusionPipeline.from_pretrained(path, dtype=dtype, **absent)


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """``save_pretrained`` without a remark on every component that is None on purpose."""
    with quiet():
        pipeline.save_pretrained(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Let both libraries say only what is wrong, and draw no bars: the run's own progress is what the user watches."""
    before = of_diffusers.get_verbosity(), of_transformers.get_verbosity()
    for logging in (of_diffusers, of_transformers):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        yield
    finally:
        of_diffusers.set_verbosity(before[0])
        of_transformers.set_verbosity(before[1])
