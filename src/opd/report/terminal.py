"""A rollout with coloured tokens for the terminal. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from opd.output.visible import visible
from opd.report.files import read_rollouts

SHADES = ((2.0, "black on #e07b1a"), (0.5, "black on #eda865"), (0.05, "black on #f7d5b5"))
"""Style of a token by the smallest loss, in nats."""

LONGEST = 160
"""Largest number of tokens to print."""


def worst_rollout(path: Path, step: int) -> Text | None:
    """The recorded held-out rollout of this step with the largest loss at one token, coloured by the loss.

    Args:
        path: ``rollouts.jsonl``.
        step: step of the evaluation.

    Returns:
        None if no rollout has a token with a loss.
    """
    rows = [row for row in read_rollouts(path) if (row["step"], row["of"]) == (step, "eval")]
    largest = {n: max(_losses(row).values(), default=0.0) for n, row in enumerate(rows)}
    n = max(largest, key=largest.__getitem__, default=None)
    return _coloured(rows[n]) if n is not None and largest[n] > 0 else None


def _losses(row: Mapping[str, Any]) -> dict[int, float]:
    """The first term's loss by position."""
    terms = row["terms"]
    return dict(zip(terms[0]["position"], terms[0]["loss"], strict=True)) if terms else {}


def _coloured(row: Mapping[str, Any]) -> Text:
    losses, own = _losses(row), set(row["own"])
    shown = Text(f"{visible(row['prompt'])}  ", style="dim", end="")
    for position, token in enumerate(row["text"][:LONGEST]):
        loss = losses.get(position, 0.0)
        shade = next((style for least, style in SHADES if loss >= least), "not dim")
        shown.append(visible(token), style=shade if position in own else "italic")
    shown.append(" …" if len(row["text"]) > LONGEST else "")
    return shown
