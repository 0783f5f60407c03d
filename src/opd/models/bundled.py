"""Paths of the small trained models that ship with the package. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from opd.errors import ModelError

BUNDLED = Path(__file__).parents[1] / "nano" / "models"
"""Folder of the models that a run file names ``nano/NAME``."""


def resolve(name: str) -> str:
    """The folder of ``nano/NAME``, and ``~`` as the home folder; any other path or id is returned unchanged."""
    if not Path(name).exists() and name.startswith("nano/"):
        folder = BUNDLED / name.removeprefix("nano/")
        if not folder.is_dir():
            known = ", ".join(sorted(f"nano/{p.name}" for p in BUNDLED.glob("*/")))
            raise ModelError(f"there is no bundled model '{name}'. Fix: name one of {known}")
        return str(folder)
    return str(Path(name).expanduser()) if name.startswith("~") else name
