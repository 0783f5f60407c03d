"""What ``opd view`` does."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from opd.errors import DataError
from opd.report.live import LiveServer
from opd.report.page import REPORT, write_page


def write(console: Console, folders: Sequence[Path], out: Path | None, *, browser: bool) -> None:
    """Write the page of some runs and open it.

    Args:
        out: the file; by default in the run's folder, and of several runs in the folder that one works in.
    """
    path = out or (folders[0] / REPORT if len(folders) == 1 else Path(REPORT))
    try:
        write_page(folders, path)
    except OSError as error:
        raise DataError(f"cannot write '{path}': {error.strerror or error}; choose another place with --out") from None
    console.print(f"report   {path}", highlight=False, soft_wrap=True)
    if browser:
        webbrowser.open(path.resolve().as_uri())


def follow(console: Console, folders: Sequence[Path], *, port: int, browser: bool) -> None:
    """Serve the page until somebody presses Ctrl-C."""
    with LiveServer(folders, port) as server:
        console.print(f"live     {server.url}  (Ctrl-C ends it)", highlight=False)
        if browser:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print()
