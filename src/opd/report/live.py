"""``opd view --live``: a server on the loopback interface for the page of a running run. No torch here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opd.report.block import data_block
from opd.report.files import ROLLOUTS, STATES
from opd.report.page import page, trees
from opd.report.samples import SAMPLES

LOOPBACK = "127.0.0.1"

WATCHED = ("run.json", "metrics.jsonl", ROLLOUTS, "result.json", STATES, SAMPLES)


class LiveServer(ThreadingHTTPServer):
    """Serves the page and its data, and reads the runs' folders again after they have changed.

    Args:
        folders: the runs' folders.
        port: 0 picks a free port.
    """

    daemon_threads = True

    def __init__(self, folders: Sequence[Path], port: int = 0) -> None:
        self.folders = list(folders)
        self.known: tuple[str, list[dict[str, Any]]] = ("", [])
        self.current()
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_address[1]}/"

    def current(self) -> tuple[str, list[dict[str, Any]]]:
        """An ETag of the folders' state, and the page's data."""
        marks = []
        for folder in self.folders:
            for path in (folder / name for name in WATCHED):
                if path.exists():
                    seen = path.stat()
                    marks.append(f"{path} {seen.st_mtime_ns} {seen.st_size}")
        name = hashlib.sha256("\n".join(marks).encode()).hexdigest()[:20]
        if name != self.known[0]:
            self.known = name, trees(self.folders)
        return self.known


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        # DNS rebinding: another site whose name resolves to this machine must not read the data.
        if self.headers.get("Host") not in (f"{LOOPBACK}:{port}", f"localhost:{port}"):
            self._answer(403, b"", "text/plain")
            return
        name, runs = self.server.current()
        tag = f'"{name}"'
        if self.path == "/":
            self._answer(200, page(runs, live=True).encode(), "text/html; charset=utf-8")
        elif self.path != "/data.json":
            self._answer(404, b"", "text/plain")
        elif self.headers.get("If-None-Match") == tag:
            self._answer(304, b"", "application/json", tag)
        else:
            self._answer(200, data_block({"runs": runs, "live": True}).encode(), "application/json", tag)

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
