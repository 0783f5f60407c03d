"""Reads a mutated file; everything but success and one sentence is a finding."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from opd.config.read import read
from opd.config.run import PromptsConfig
from opd.data.prompts import load_prompts
from opd.errors import OpdError
from support.mutations import data_file, run_file

LONGEST_S = 5.0
"""Seconds after which a file counts as a hang."""


def check_run_file(seed: int, folder: Path) -> str | None:
    """A sentence on what went wrong with this seed's run file; None if it was read or refused."""
    source, overrides = run_file(seed)
    if not isinstance(source, Mapping):
        file = folder / "run.yaml"
        file.write_text(source, encoding="utf-8", errors="surrogatepass")
        source = file
    return _checked(seed, lambda: read(source, overrides))


def check_data_file(seed: int, folder: Path) -> str | None:
    """The same for a data file."""
    file = folder / "rows.jsonl"
    file.write_bytes(data_file(seed))
    return _checked(seed, lambda: load_prompts(PromptsConfig(path=str(file)), key="prompts", has_template=True))


def _checked(seed: int, act: object) -> str | None:
    started = time.perf_counter()
    try:
        act()  # type: ignore[operator]
    except OpdError as error:
        if "\n" in str(error).strip():
            return f"seed {seed}: a sentence of two lines: {error}"
    except Exception as error:
        return f"seed {seed}: {type(error).__name__}: {str(error)[:200]}"
    took = time.perf_counter() - started
    return f"seed {seed}: {took:.1f} s" if took > LONGEST_S else None
