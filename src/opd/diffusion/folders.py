"""Pipelines as folders, in diffusers' own layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

import opd.diffusion.pixels  # noqa: F401  diffusers finds a pipeline's components in imported modules
from opd.models.bundled import resolve


def load_pipeline(folder: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """Load a pipeline from a folder, a hub id or a bundled name (``nano/images-base``).

    Components that the folder marks as absent are passed as None: ``from_pretrained`` requires an argument for every
    component that its class does not call optional, such as Stable Diffusion 3's third text encoder.
    """
    path = resolve(str(folder))
    index = Path(path) / "model_index.json"
    known = json.loads(index.read_text()) if index.is_file() else {}
    absent = {name: None for name, value in known.items() if isinstance(value, list) and value[0] is None}
    with quiet():  # it warns that a pixel model's autoencoder is not of the expected class
        return DiffusionPipeline.from_pretrained(path, dtype=dtype, **absent)


def save_pipeline(pipeline: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """``save_pretrained`` without warnings about absent components, and without the source's path in the files.

    Args:
        dtype: rounds the pipeline's weights first; None leaves them as they are.
    """
    with quiet():
        (pipeline.to(dtype) if dtype else pipeline).save_pretrained(folder)
    index = [folder / "model_index.json"]
    for path in index + [path for part in pipeline.components for path in (folder / part).glob("*.json")]:
        content = json.loads(path.read_text())
        if content.pop("_name_or_path", None):
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and warnings of diffusers and transformers."""
    loggings = (diffusers_logging, transformers_logging)
    before = [(each.get_verbosity(), each.is_progress_bar_enabled()) for each in loggings]
    for each in loggings:
        each.set_verbosity_error()
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each, (verbosity, bar) in zip(loggings, before, strict=True):
            each.set_verbosity(verbosity)
            if bar:
                each.enable_progress_bar()
