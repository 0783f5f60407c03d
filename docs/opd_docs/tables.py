"""Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with escaped cells."""
    lines = [[cell(text) for text in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])


def cell(text: str) -> str:
    """A text on one line, with escaped bars."""
    return re.sub(r"[ \n]+", " ", text).strip().replace("|", r"\|")


def prose(docstring: str) -> str:
    """A docstring as Markdown: double backticks become single ones."""
    return docstring.replace("``", "`")
