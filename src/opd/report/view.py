"""``opd view``: write a page, or serve it live."""

from __future__ import annotations

import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from opd.errors import DataError
from opd.report.live import LiveServer
from opd.report.page import REPORT, write_page
from opd.report.pipeline import DATA, is_pipeline, write_pipeline_page

POLL = 0.5
"""Seconds between two checks whether a run has begun."""


def write(console: Console, folders: Sequence[Path], out: Path | None, *, browser: bool) -> None:
    """Write the page of one run, several runs or a pipeline, and open it in a browser.

    Args:
        out: path of the page; None for the run's folder, or the current folder for several runs.
        browser: open the page.
    """
    path = out or (folders[0] / REPORT if len(folders) == 1 else Path(REPORT))
    pipelines = [folder for folder in folders if is_pipeline(folder)]
    if pipelines and len(folders) > 1:
        raise DataError(f"'{pipelines[0]}' is a pipeline and cannot be shown beside others. Fix: name it alone")
    try:
        if pipelines:
            write_pipeline_page(pipelines[0], path)
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
    """Serve the page until Ctrl-C; a run or pipeline that has not begun is waited for."""
    if len(folders) > 1 and (pipelines := [folder for folder in folders if is_pipeline(folder)]):
        raise DataError(f"'{pipelines[0]}' is a pipeline and cannot be shown beside others. Fix: name it alone")
    try:
        for folder in folders:
            _wait(console, folder)
    except KeyboardInterrupt:
        console.print()
        return
    with LiveServer(folders, port) as server:
        console.print(f"live     {server.url}  (Ctrl-C to stop)", highlight=False)
        if browser:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print()


def _wait(console: Console, folder: Path) -> None:
    """Wait until a run or a pipeline has begun in a folder."""
    begun = [folder / name for name in ("run.json", DATA)]
    if not any(path.is_file() for path in begun):
        console.print(f"waiting  for a run to begin in {folder}  (Ctrl-C to stop)", highlight=False, soft_wrap=True)
    while not any(path.is_file() for path in begun):
        time.sleep(POLL)
