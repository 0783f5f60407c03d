"""A real `opd serve` on this machine, with faults that a test plans."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import numpy
import uvicorn

from opd.config.secrets import Secret
from opd.models.language import LanguageModel
from opd.servers.serve import application

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Reply = tuple[int, dict[str, str], bytes]
"""Status, headers and body of an answer."""


class Teacher:
    """Serves models until ``stop``; each question takes the next of ``faults``, or none.

    Attributes:
        faults: names of ``FAULTS``; an empty one for an answer as it should be.
        asked: paths of the requests so far.
        delay: seconds before each answer.
    """

    def __init__(self, models: Mapping[str, LanguageModel], *, key: str | None = None, port: int = 0) -> None:
        self.app = application(models, secret=Secret(key) if key else None)
        self.faults: deque[str] = deque()
        self.asked: list[str] = []
        self.delay = 0.0
        self.socket = socket.create_server(("127.0.0.1", port))
        self.port: int = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        settings: dict[str, Any] = {"interface": "asgi3", "lifespan": "off", "timeout_graceful_shutdown": 0}
        config = uvicorn.Config(self._answer, log_level="critical", **settings)
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.uvicorn.run, args=([self.socket],), daemon=True)
        self.thread.start()
        while not self.uvicorn.started:
            time.sleep(0.005)

    async def _answer(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.asked.append(scope["path"])
        fault = self.faults.popleft() if scope["path"] == "/pooling" and self.faults else ""
        await asyncio.sleep(self.delay)
        if not fault:
            await self.app(scope, receive, send)
            return
        status, headers, body = 500, dict[bytes, bytes](), bytearray()

        async def keep(message: Any) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], dict(message["headers"])
            else:
                body.extend(message.get("body", b""))

        await self.app(scope, receive, keep)
        whole = {k.decode(): v.decode() for k, v in headers.items()}
        await FAULTS[fault](send, (status, whole, bytes(body)))

    def stop(self) -> None:
        """End the server; its port can be taken again."""
        self.uvicorn.should_exit = True
        self.thread.join()
        self.socket.close()

    def __enter__(self) -> Teacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


async def _send(send: Send, reply: Reply, *, cut: int | None = None) -> None:
    status, headers, body = reply
    headers = {**headers, "content-length": str(len(body))}
    pairs = [(k.encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    if cut is not None:
        await send({"type": "http.response.body", "body": body[:cut], "more_body": True})
        raise ConnectionError("cut on purpose")
    await send({"type": "http.response.body", "body": body})


async def _slow(send: Send, reply: Reply) -> None:
    await asyncio.sleep(1.5)
    await _send(send, reply)


async def _drips(send: Send, reply: Reply) -> None:
    """Byte by byte, so that no single read is late."""
    status, headers, body = reply
    pairs = [(k.encode(), v.encode()) for k, v in {**headers, "content-length": str(len(body))}.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    for n in range(len(body)):
        await send({"type": "http.response.body", "body": body[n : n + 1], "more_body": n + 1 < len(body)})
        await asyncio.sleep(0.05)


async def _too_many(send: Send, reply: Reply) -> None:
    await _send(send, (429, {"retry-after": "0"}, b"later"))


async def _broken(send: Send, reply: Reply) -> None:
    await _send(send, (503, {}, b"not now"))


async def _cut(send: Send, reply: Reply) -> None:
    await _send(send, reply, cut=len(reply[2]) // 2)


async def _garbage(send: Send, reply: Reply) -> None:
    await _send(send, (200, {"content-type": "text/html"}, b"<html>welcome</html>"))


def _altered(change: Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]) -> Any:
    async def act(send: Send, reply: Reply) -> None:
        status, headers, body = reply
        head, body = change(json.loads(headers["metadata"]), body)
        await _send(send, (status, {**headers, "metadata": json.dumps(head)}, body))

    return act


def _halved(head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """Half as many units, and twice as many states."""
    for one in head["data"]:
        one["shape"] = [2 * one["shape"][0], one["shape"][1] // 2]
    return head, body


def _normalised(head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """Every state has length 1."""
    width = head["data"][0]["shape"][-1]
    raw = numpy.frombuffer(body, dtype=numpy.uint16).astype(numpy.uint32) << 16
    states = raw.view(numpy.float32).reshape(-1, width)
    states = states / numpy.linalg.norm(states, axis=1, keepdims=True)
    return head, (states.astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes()


def _no_number(head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    return head, b"\xff\xff" * (len(body) // 2)


def _missing(head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """The last sequence is left out."""
    last = head["data"].pop()
    return head, body[: last["start"]]


def _other_weights(head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """As after a restart with another model of the same shape."""
    return {**head, "opd": {"weights": "0123456789abcdef"}}, bytes(reversed(body))


def _fewer_tokens(head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """The server read other ids, as with another tokenizer."""
    return {**head, "usage": {"prompt_tokens": head["usage"]["prompt_tokens"] - 1}}, body


FAULTS: dict[str, Callable[[Send, Reply], Awaitable[None]]] = {
    "slow": _slow,
    "drips": _drips,
    "429": _too_many,
    "503": _broken,
    "cut": _cut,
    "garbage": _garbage,
    "wrong width": _altered(_halved),
    "normalised": _altered(_normalised),
    "not finite": _altered(_no_number),
    "missing sequence": _altered(_missing),
    "other weights": _altered(_other_weights),
    "other tokens": _altered(_fewer_tokens),
}
"""What a server can do wrong, by name."""
