"""Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; what would break a row is escaped."""
    lines = [[cell(text) for text in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])


def cell(text: str) -> str:
    """A text on one line, without a bar that would end the cell."""
    return re.sub(r"[ \n]+", " ", text).strip().replace("|", r"\|")


def prose(docstring: str) -> str:
    """A docstring as Markdown: double backticks are single ones there."""
    return docstring.replace("``", "`")
