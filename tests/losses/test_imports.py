"""Losses are pure functions of tensors: they import no model, no tokenizer, no config and no I/O.

The files of the GPU's walk also import Triton, its environment variable, and ``logging`` to warn where it is missing.
"""

import ast
from pathlib import Path

import opd.losses

ALLOWED = (
    "__future__",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "functools",
    "itertools",
    "math",
    "operator",
)
GPU_ALONE = {"kernels.py": ("triton", "os"), "fused.py": ("logging", "types"), "gpu.py": ("logging",)}
FOLDER = Path(opd.losses.__file__).parent


def imported(path: Path) -> set[str]:
    """Modules that a file imports when it runs; imports for type checkers alone do not count."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_losses_import_torch_types_and_errors_alone() -> None:
    own = ("torch", "typing", "opd.losses", "opd.types", "opd.signals", "opd.errors", *ALLOWED)
    for path in FOLDER.glob("*.py"):
        others = {m for m in imported(path) if not m.startswith((*own, *GPU_ALONE.get(path.name, ())))}
        assert not others, f"{path.name} imports {', '.join(sorted(others))}"
