"""JSON-lines files of a run's folder that the report reads. Nothing here imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROLLOUTS = "rollouts.jsonl"
"""Recorded rollouts with their tokens; see ``report.record``."""

STATES = "states.jsonl"
"""Loss along the trajectories of a denoising run: ``{"step": 20, "loss": {"distill": [0.2, 0.1, null]}}``, a mean per
denoising step."""

Tree = dict[str, Any]


def read_lines(path: Path) -> list[Tree]:
    """The lines of a file that may still be written to; empty without the file. Broken lines are skipped."""
    found = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def read_metrics(path: Path) -> list[Tree]:
    """The lines of ``metrics.jsonl`` without metrics that had no finite value."""
    return [{key: measured(value) for key, value in line.items()} for line in read_lines(path)]


def measured(metrics: Any) -> Any:
    """Metrics without those that are null, because they had no finite value."""
    return {k: v for k, v in metrics.items() if v is not None} if isinstance(metrics, dict) else metrics


def read_json(path: Path) -> Tree | None:
    """The content of a JSON file; None without the file."""
    if not path.exists():
        return None
    tree: Tree = json.loads(path.read_text(encoding="utf-8"))
    return tree


def read_rollouts(path: Path) -> list[Tree]:
    """The lines of ``rollouts.jsonl``; of two lines with the same key the later one counts."""
    rows: dict[tuple[Any, ...], Tree] = {}
    for row in read_lines(path):
        key = (row["step"], row["of"], row["n"]) if "n" in row else (row["step"], row["of"], *row["about"])
        rows[key] = row
    return list(rows.values())
