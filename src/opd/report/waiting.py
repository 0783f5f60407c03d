"""The page of runs or a pipeline that have not begun; it becomes theirs by itself. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opd.report.page import assemble
from opd.report.pipeline import DATA

BEGUN = ("run.json", DATA)
"""A run or a pipeline writes one of these files when it begins."""


def begun(folder: Path) -> bool:
    """Whether a run or a pipeline has begun in a folder."""
    return any((folder / name).is_file() for name in BEGUN)


def waiting_data(folders: Sequence[Path], *, live: str) -> dict[str, Any]:
    """The page's data: the folders, and whether each exists.

    Args:
        folders: those in which nothing has begun.
        live: name of these data on the server that the page polls for newer ones.
    """
    return {
        "live": live,
        "waiting": [{"folder": str(folder.absolute()), "exists": folder.is_dir()} for folder in folders],
    }


def waiting_page(tree: dict[str, Any]) -> str:
    """The whole page."""
    return assemble(
        "waiting.html",
        title="waiting for a run",
        tree=tree,
        sections={"short": "Waiting"},
        scripts=("dom.js", "shared.js", "waiting.js"),
        styles=("style.css",),
        connect=True,
    )
