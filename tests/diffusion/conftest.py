"""Tiny pipelines on disk, each made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("diffusers")

from opd.diffusion.folders import save_pipeline
from opd.diffusion.models import DenoisingModel, load
from support.tiny_pipelines import make_pipeline

Folder = Callable[..., str]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder of a pipeline: ``folder("sd3", 1, shift=3.0)``."""
    made: dict[Any, str] = {}

    def of(kind: str, seed: int = 0, **changes: Any) -> str:
        key = kind, seed, tuple(sorted(changes.items()))
        if key not in made:
            path = tmp_path_factory.mktemp(kind)
            save_pipeline(make_pipeline(kind, seed, **changes), path)
            made[key] = str(path)
        return made[key]

    return of


@pytest.fixture
def model(folder: Folder) -> Callable[..., DenoisingModel]:
    """A freshly loaded model, as a run has it: ``model("ddim", 1)``."""

    def of(kind: str, seed: int = 0, **changes: Any) -> DenoisingModel:
        return load(folder(kind, seed, **changes), key="student", text_tokens=0)

    return of
