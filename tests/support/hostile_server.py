"""A chat endpoint on this machine, written on bare sockets, that does what no server should."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

Reply = Callable[[socket.socket, str], None]
"""Answers a request; gets the connection and the text of the request, headers included."""


def chat(content: object) -> bytes:
    """The body of a chat endpoint's answer."""
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


def whole(body: bytes, *, status: str = "200 OK", headers: str = "") -> bytes:
    """An answer with its headers."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
    return head.encode() + body


def sends(answer: bytes) -> Reply:
    """The same answer to every request."""
    return lambda connection, request: connection.sendall(answer)


def drips(answer: bytes, every: float = 0.02) -> Reply:
    """The answer byte by byte."""

    def reply(connection: socket.socket, request: str) -> None:
        for byte in answer:
            connection.sendall(bytes([byte]))
            time.sleep(every)

    return reply


def key_of(request: str) -> str:
    """The key that a request carries."""
    line = next(line for line in request.splitlines() if line.lower().startswith("authorization:"))
    return line.split()[-1]


class HostileServer:
    """Answers every request by ``reply`` until it is stopped.

    Attributes:
        requests: texts of the requests so far.
    """

    def __init__(self, reply: Reply) -> None:
        self.reply, self.requests = reply, list[str]()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65_536)
            head, _, body = request.partition(b"\r\n\r\n")
            lines = head.splitlines()
            length = next((int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-l")), 0)
            while len(body) < length:
                body += connection.recv(65_536)
            self.requests.append((head + b"\r\n\r\n" + body).decode())
            self.reply(connection, self.requests[-1])

    def __enter__(self) -> HostileServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.listening.close()
