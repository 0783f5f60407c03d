"""Pipelines as folders, in diffusers' own layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging

from opd.bundled import resolve


def load_pipeline(folder: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline in a folder, or the bundled one of that name (``nano/pictures-base``).

    Components that the folder says it lacks are passed as None: ``from_pretrained`` insists on an answer for those
    which its class does not call optional, such as Stable Diffusion 3's third text encoder.
    """
    path = resolve(str(folder))
    index = Path(path) / "model_index.json"
    known = json.loads(index.read_text()) if index.is_file() else {}
    absent = {name: None for name, value in known.items() if isinstance(value, list) and value[0] is None}
    with _only_errors():  # a pixel model's autoencoder is not of the class that a pipeline names
        return DiffusionPipeline.from_pretrained(path, dtype=dtype, **absent)


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """``save_pretrained`` without a remark on every component that is None on purpose."""
    with _only_errors():
        pipeline.save_pretrained(folder)


@contextmanager
def _only_errors() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
