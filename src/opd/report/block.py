"""Data as it stands in a page: JSON that cannot end its element, with texts of bounded length. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from opd.output.run_folder import finite

ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
"""Characters that could end a script element or one of its lines, in JSON's escaped form."""

LONGEST = 4_000
"""Characters of a text; of a longer one the page has beginning and end."""

LONGEST_TOKEN = 100
"""The same for the text of one token."""

TOKENS = frozenset({"text", "top"})
"""Keys of a rollout whose texts are tokens."""

WHOLE = frozenset({"prompt_text", "content", "reasoning_content", "read", "instead_of"})
"""Keys of a rollout whose texts may be five times as long as others."""


def data_block(tree: Any) -> str:
    """JSON that is safe inside a script element."""
    text = json.dumps(finite(tree), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(ESCAPES)


def bounded(tree: Any, longest: int = LONGEST) -> Any:
    """The same tree, with the middle of long texts left out."""
    if isinstance(tree, str):
        return tree if len(tree) <= longest else f"{tree[: longest // 2]} … {tree[-longest // 2 :]}"
    if isinstance(tree, Mapping):
        return {bounded(key, LONGEST_TOKEN): bounded(value, longest) for key, value in tree.items()}
    return [bounded(value, longest) for value in tree] if isinstance(tree, list | tuple) else tree


def bounded_row(row: Any, key: str = "") -> Any:
    """A line of ``rollouts.jsonl`` with texts of bounded length."""
    if isinstance(row, Mapping):
        return {inner: bounded_row(value, inner) for inner, value in row.items()}
    if isinstance(row, list):
        # A column of numbers has none but numbers, and there are many of them.
        return [bounded_row(value, key) for value in row] if row and not isinstance(row[0], int | float) else row
    if isinstance(row, str):
        return bounded(row, LONGEST_TOKEN if key in TOKENS else 5 * LONGEST if key in WHOLE else LONGEST)
    return row
