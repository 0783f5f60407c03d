"""Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with escaped cells."""
    lines = [[cell(text) for text in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])


def cell(text: str) -> str:
    """A text on one line, with escaped bars; within code Markdown needs none."""
    parts = re.sub(r"[ \n]+", " ", text).strip().split("`")
    return "`".join(part if number % 2 else part.replace("|", r"\|") for number, part in enumerate(parts))


def prose(docstring: str) -> str:
    """A docstring as Markdown: double backticks become single ones."""
    return docstring.replace("``", "`")
