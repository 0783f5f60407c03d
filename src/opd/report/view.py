"""What ``opd view`` does."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from opd.errors import DataError
from opd.report.live import LiveServer
from opd.report.page import REPORT, write_page
from opd.report.pipeline import is_pipeline, write_pipeline_page


def write(console: Console, folders: Sequence[Path], out: Path | None, *, browser: bool) -> None:
    """Write the page of some runs, or of a pipeline, and open it.

    Args:
        out: the file; by default in the run's folder, and of several runs in the folder that one works in.
    """
    path = out or (folders[0] / REPORT if len(folders) == 1 else Path(REPORT))
    pipelines = [folder for folder in folders if is_pipeline(folder)]
    if pipelines and len(folders) > 1:
        raise DataError(
            f"'{pipelines[0]}' is a pipeline, which stands alone; name runs, such as the folders of its stages"
        )
    try:
        if pipelines:
            write_pipeline_page(pipelines[0], path)
        else:
            write_page(folders, path)
    except OSError as error:
        raise DataError(f"cannot write '{path}': {error.strerror or error}; choose another place with --out") from None
    console.print(f"report   {path}", highlight=False, soft_wrap=True)
    if browser:
        webbrowser.open(path.resolve().as_uri())


def follow(console: Console, folders: Sequence[Path], *, port: int, browser: bool) -> None:
    """Serve the page until somebody presses Ctrl-C."""
    for folder in folders:
        if is_pipeline(folder):
            raise DataError(f"'{folder}' is a pipeline; --live follows runs, such as the folders of its stages")
    with LiveServer(folders, port) as server:
        console.print(f"live     {server.url}  (Ctrl-C ends it)", highlight=False)
        if browser:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print()
