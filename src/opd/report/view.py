"""``opd view``: write a page, or serve it live."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from opd.errors import DataError
from opd.report.live import LiveServer
from opd.report.page import REPORT, write_page
from opd.report.pipeline import check_alone, is_pipeline, write_pipeline_page


def write(console: Console, folders: Sequence[Path], out: Path | None, *, browser: bool) -> None:
    """Write the page of one run, several runs or a pipeline, and open it in a browser.

    Args:
        out: path of the page; None for the run's folder, or the current folder for several runs.
        browser: open the page.
    """
    path = out or (folders[0] / REPORT if len(folders) == 1 else Path(REPORT))
    check_alone(folders)
    try:
        if is_pipeline(folders[0]):
            write_pipeline_page(folders[0], path)
        else:
            write_page(folders, path)
    except OSError as error:
        raise DataError(
            f"cannot write '{path}' ({error.strerror or error}). Fix: choose another path with --out"
        ) from None
    console.print(f"report   {path}", highlight=False, soft_wrap=True)
    if browser:
        webbrowser.open(path.resolve().as_uri())


def follow(console: Console, folders: Sequence[Path], *, port: int, browser: bool) -> None:
    """Serve the page until Ctrl-C; of a run or pipeline that has not begun it says so until then."""
    with LiveServer(folders, port) as server:
        for folder in server.missing or ():
            console.print(f"waiting  for a run to begin in {folder}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"live     {server.url}  (Ctrl-C to stop)", highlight=False)
        if browser:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print()
