"""The file that a run's recorded rollouts stand in. Nothing here imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROLLOUTS = "rollouts.jsonl"
"""In the run's folder."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that may still be written to; one that a kill cut short is left out, of two the later."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        key = (row["step"], row["of"], row["n"]) if "n" in row else (row["step"], row["of"], *row["about"])
        rows[key] = row
    return list(rows.values())
