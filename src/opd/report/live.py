"""``opd view --live``: a server on the loopback interface for the page of running runs or a pipeline. No torch here."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opd.errors import OpdError
from opd.report.block import data_block
from opd.report.files import ROLLOUTS, STATES
from opd.report.page import page, page_tree, trees
from opd.report.pipeline import (
    DATA,
    check_alone,
    is_pipeline,
    pipeline_data,
    pipeline_page,
    stage_names,
    stage_path,
)
from opd.report.samples import SAMPLES
from opd.report.waiting import begun, waiting_data, waiting_page

LOOPBACK = "127.0.0.1"

WATCHED = ("run.json", "metrics.jsonl", ROLLOUTS, "result.json", STATES, SAMPLES)


class Watched:
    """A page whose data are read again after one of its files has changed.

    Args:
        files: the files to watch, asked for again each time.
        read: the page's data, from the name of the files' state.
        draw: the page of some data.
    """

    def __init__(
        self, files: Callable[[], Iterable[Path]], read: Callable[[str], Any], draw: Callable[[Any], str]
    ) -> None:
        self.files, self.read, self.draw = files, read, draw
        self.known: tuple[str, Any] = ("", None)

    def current(self) -> tuple[str, Any]:
        """A name of the files' state, for the ETag, and the page's data."""
        marks = [f"{path} {_state(path)}" for path in self.files()]
        name = hashlib.sha256("\n".join(marks).encode()).hexdigest()[:20]
        if name != self.known[0]:
            self.known = name, self.read(name)
        return self.known


def _state(path: Path) -> str:
    """When a file was changed, and its size; empty without the file."""
    try:
        seen = path.stat()
    except OSError:
        return ""
    return f"{seen.st_mtime_ns} {seen.st_size}"


def of_runs(folders: Sequence[Path]) -> Watched:
    """The page of some runs."""
    return Watched(
        lambda: (folder / name for folder in folders for name in WATCHED),
        lambda name: page_tree(trees(folders), live=name),
        lambda tree: page(tree["runs"], live=tree["live"]),
    )


def of_pipeline(folder: Path) -> Watched:
    """The page of a pipeline, whose links lead to live pages of its stages."""

    def files() -> Iterator[Path]:
        yield folder / DATA
        yield from (folder / name / file for name in stage_names(folder) for file in ("run.json", "metrics.jsonl"))

    return Watched(files, lambda name: pipeline_data(folder, live=name), pipeline_page)


def of_waiting(folders: Sequence[Path]) -> Watched:
    """The page before all runs have begun."""
    return Watched(lambda: folders, lambda name: waiting_data(folders, live=name), waiting_page)


class LiveServer(ThreadingHTTPServer):
    """Serves the page of runs or of one pipeline with its stages, and its data while they change.

    Before they have begun, the page says so; it becomes theirs by itself.

    Args:
        folders: the runs' folders, or one pipeline's.
        port: 0 picks a free port.
    """

    daemon_threads = True

    def __init__(self, folders: Sequence[Path], port: int = 0) -> None:
        self.folders = list(folders)
        self.stages: dict[str, Watched] = {}
        self.missing: list[Path] | None = None
        self.root().current()
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_address[1]}/"

    def root(self) -> Watched:
        """The page of the folders as they are now.

        Raises:
            DataError: one of several folders is a pipeline's.
        """
        missing = [folder for folder in self.folders if not begun(folder)]
        if missing != self.missing:
            self.missing = missing
            self._root = self._page(missing)
        return self._root

    def _page(self, missing: Sequence[Path]) -> Watched:
        check_alone(self.folders)
        if missing:
            return of_waiting(missing)
        return of_pipeline(self.folders[0]) if is_pipeline(self.folders[0]) else of_runs(self.folders)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A visitor who leaves before the answer is no fault; anything else is printed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def watched(self, path: str) -> Watched | None:
        """The page at a path that ends with ``/``; None without one."""
        if path == "/":
            return self.root()
        pipeline = self.folders[0]
        if path not in self.stages and is_pipeline(pipeline):
            for name in stage_names(pipeline):
                if path == f"/{stage_path(name)}" and (pipeline / name / "run.json").is_file():
                    self.stages[path] = of_runs([pipeline / name])
        return self.stages.get(path)


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    timeout = 30
    """Seconds after which a connection that asks nothing is closed; each has a thread."""

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        # DNS rebinding: another site whose name resolves to this machine must not read the data.
        if self.headers.get_all("Host") not in ([f"{LOOPBACK}:{port}"], [f"localhost:{port}"]):
            self._answer(403, b"", "text/plain")
            return
        place, _, file = self.path.rpartition("/")
        try:
            watched = self.server.watched(f"{place}/") if file in ("", "data.json") else None
            if watched is None:
                self._answer(404, b"", "text/plain")
            else:
                self._answer_page(watched, whole=file == "")
        except OpdError as error:  # the page asks again, and a damaged file may be whole by then
            self._answer(503, str(error).encode(), "text/plain; charset=utf-8")

    def _answer_page(self, watched: Watched, *, whole: bool) -> None:
        name, tree = watched.current()
        tag = f'"{name}"'
        if whole:
            self._answer(200, watched.draw(tree).encode(), "text/html; charset=utf-8")
        elif self.headers.get("If-None-Match") == tag:
            self._answer(304, b"", "application/json", tag)
        else:
            self._answer(200, data_block(tree).encode(), "application/json", tag)

    def _answer(self, status: int, body: bytes, kind: str, tag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing to the terminal."""
