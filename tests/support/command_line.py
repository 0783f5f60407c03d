"""The command line, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from opd.cli import main

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
"""Output that does not depend on the terminal, and no network."""


@dataclass(frozen=True)
class Done:
    """A finished command."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str, cwd: Path) -> Done:
    """Run ``opd`` in this process: a tenth of a second instead of the seconds that importing takes."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        patch.dict(os.environ, ENVIRONMENT),
        patch.object(sys, "argv", ["opd", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as exit:
            status = exit.code
        else:
            status = 0
    assert isinstance(status, int | None)
    return Done(status or 0, out.getvalue(), err.getvalue())


def process(*arguments: str, cwd: Path) -> Done:
    """Run ``opd`` as a user does: also shows what libraries print while they are imported and models load."""
    done = subprocess.run(
        [sys.executable, "-m", "opd", *arguments],
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Done(done.returncode, done.stdout, done.stderr)
