"""JSON-lines files of a run's folder that the report reads. Nothing here imports torch."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from opd.data import strict_json
from opd.errors import DataError
from opd.report.rows import is_metrics

ROLLOUTS = "rollouts.jsonl"
"""Recorded rollouts with their tokens; see ``report.record``."""

STATES = "states.jsonl"
"""Loss along the trajectories of a denoising run: ``{"step": 20, "loss": {"distill": [0.2, 0.1, null]}}``, a mean per
denoising step."""

Tree = dict[str, Any]


def read_lines(path: Path) -> list[Tree]:
    """The lines of a file that may still be written to; empty without the file. Broken lines are skipped."""
    found = []
    for _, line in strict_json.lines(path) if path.is_file() else ():
        with suppress(ValueError):
            row = strict_json.parse(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                found.append(row)
    return found


def read_metrics(path: Path) -> list[Tree]:
    """The lines of ``metrics.jsonl`` as the log writes them, without metrics that had no finite value."""
    return [{key: measured(value) for key, value in line.items()} for line in read_lines(path) if is_metrics(line)]


def measured(metrics: Any) -> Any:
    """Metrics without those that are null, because they had no finite value."""
    return {k: v for k, v in metrics.items() if v is not None} if isinstance(metrics, dict) else metrics


def read_json(path: Path) -> Tree | None:
    """The content of a JSON file; None without the file.

    Raises:
        DataError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        tree = strict_json.parse(path.read_bytes())
    except ValueError as error:
        raise DataError(f"'{path}' is damaged ({error}). Fix: delete it, or run again with another out") from None
    if not isinstance(tree, dict):
        raise DataError(f"'{path}' is damaged (it is no object). Fix: delete it, or run again with another out")
    return tree


def read_rollouts(path: Path) -> list[Tree]:
    """The lines of ``rollouts.jsonl``; of two lines with the same key the later one counts."""
    rows: dict[tuple[Any, ...], Tree] = {}
    for row in read_lines(path):
        with suppress(KeyError, TypeError):  # a line of another shape
            key = (row["step"], row["of"], row["n"]) if "n" in row else (row["step"], row["of"], *row["about"])
            rows[key] = row
    return list(rows.values())
