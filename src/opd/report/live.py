"""``opd view --live``: a server on the loopback interface for the page of running runs or a pipeline. No torch here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opd.report.block import data_block
from opd.report.files import ROLLOUTS, STATES
from opd.report.page import page, page_tree, trees
from opd.report.pipeline import DATA, is_pipeline, pipeline_data, pipeline_page, stage_names, stage_path
from opd.report.samples import SAMPLES

LOOPBACK = "127.0.0.1"

WATCHED = ("run.json", "metrics.jsonl", ROLLOUTS, "result.json", STATES, SAMPLES)


class Watched:
    """A page whose data are read again after one of its files has changed.

    Args:
        files: the files to watch, asked for again each time.
        read: the page's data.
        draw: the page of some data.
    """

    def __init__(
        self, files: Callable[[], Iterable[Path]], read: Callable[[], Any], draw: Callable[[Any], str]
    ) -> None:
        self.files, self.read, self.draw = files, read, draw
        self.known: tuple[str, Any] = ("", None)

    def current(self) -> tuple[str, Any]:
        """An ETag of the files' state, and the page's data."""
        marks = []
        for path in self.files():
            if path.exists():
                seen = path.stat()
                marks.append(f"{path} {seen.st_mtime_ns} {seen.st_size}")
        name = hashlib.sha256("\n".join(marks).encode()).hexdigest()[:20]
        if name != self.known[0]:
            self.known = name, self.read()
        return self.known


def of_runs(folders: Sequence[Path]) -> Watched:
    """The page of some runs."""
    return Watched(
        lambda: (folder / name for folder in folders for name in WATCHED),
        lambda: page_tree(trees(folders), live=True),
        lambda tree: page(tree["runs"], live=True),
    )


def of_pipeline(folder: Path) -> Watched:
    """The page of a pipeline, whose links lead to live pages of its stages."""

    def files() -> Iterator[Path]:
        yield folder / DATA
        yield from (folder / name / file for name in stage_names(folder) for file in ("run.json", "metrics.jsonl"))

    def read() -> Any:
        return pipeline_data(folder, live=True)

    return Watched(files, read, pipeline_page)


class LiveServer(ThreadingHTTPServer):
    """Serves the page of runs or of one pipeline with its stages, and its data while they change.

    Args:
        folders: the runs' folders, or one pipeline's.
        port: 0 picks a free port.
    """

    daemon_threads = True

    def __init__(self, folders: Sequence[Path], port: int = 0) -> None:
        self.pipeline = folders[0] if len(folders) == 1 and is_pipeline(folders[0]) else None
        self.pages = {"/": of_pipeline(self.pipeline) if self.pipeline else of_runs(list(folders))}
        self.pages["/"].current()
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_address[1]}/"

    def watched(self, path: str) -> Watched | None:
        """The page at a path that ends with ``/``; None without one."""
        if path not in self.pages and self.pipeline:
            for name in stage_names(self.pipeline):
                if path == f"/{stage_path(name)}" and (self.pipeline / name / "run.json").is_file():
                    self.pages[path] = of_runs([self.pipeline / name])
        return self.pages.get(path)


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        # DNS rebinding: another site whose name resolves to this machine must not read the data.
        if self.headers.get("Host") not in (f"{LOOPBACK}:{port}", f"localhost:{port}"):
            self._answer(403, b"", "text/plain")
            return
        place, _, file = self.path.rpartition("/")
        watched = self.server.watched(f"{place}/") if file in ("", "data.json") else None
        if watched is None:
            self._answer(404, b"", "text/plain")
            return
        name, tree = watched.current()
        tag = f'"{name}"'
        if file == "":
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
