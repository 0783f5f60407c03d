"""The small trained models that ship with the package. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from opd.errors import ModelError

BUNDLED = Path(__file__).parents[1] / "nano" / "models"
"""``nano/NAME`` in a run file means one of them."""


def resolve(name: str) -> str:
    """The folder behind ``nano/NAME``; any other path or id as it is."""
    if not Path(name).exists() and name.startswith("nano/"):
        folder = BUNDLED / name.removeprefix("nano/")
        if not folder.is_dir():
            known = ", ".join(sorted(f"nano/{p.name}" for p in BUNDLED.glob("*/")))
            raise ModelError(f"there is no bundled model '{name}'; the package has {known}")
        return str(folder)
    return name
