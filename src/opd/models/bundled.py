"""Paths of the small trained models that ship with the package. Nothing here imports torch."""

from __future__ import annotations

import json
from pathlib import Path

from opd.errors import ModelError, near

BUNDLED = Path(__file__).parents[1] / "nano" / "models"
"""Folder of the models that a run file names ``nano/NAME``."""


def resolve(name: str) -> str:
    """The folder of ``nano/NAME``, and ``~`` as the home folder; any other path or id is returned unchanged."""
    if not Path(name).exists() and name.startswith("nano/"):
        folder = BUNDLED / name.removeprefix("nano/")
        if not folder.is_dir():
            known = bundled_names()
            raise ModelError(
                f"there is no bundled model '{name}'{near(name, known)} Fix: name one of {', '.join(known)}"
            )
        return str(folder)
    return str(Path(name).expanduser()) if name.startswith("~") else name


def bundled_names() -> list[str]:
    """Names of the bundled models."""
    return sorted(f"nano/{p.name}" for p in BUNDLED.glob("*/"))


def is_bundled(name: str) -> bool:
    """Whether a model is bundled, or is the folder or a checkpoint of a run that trained a bundled one."""
    path = Path(name).expanduser()
    if not path.exists():
        return name.startswith("nano/")
    if path.resolve().is_relative_to(BUNDLED):
        return True
    runs = (folder / "run.json" for folder in (path, *path.resolve().parents[:2]))
    run = next((run for run in runs if run.is_file()), None)
    try:
        return run is not None and is_bundled(str(json.loads(run.read_text())["student"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
