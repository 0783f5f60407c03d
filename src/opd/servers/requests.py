"""Questions to one server or several equal ones: asked again until one answers rightly, or the time is up.

A question is answered as a whole or not at all, so it can be asked again anywhere. Requests run on a thread of their
own, so a run computes while it waits.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, wait
from functools import cache
from typing import Any, TypeVar

import httpx

from opd.config.secrets import Secret, redact_sentence
from opd.errors import ModelError
from opd.servers.http import MAX_WAIT_S, Answer, Http, Refused, address, asked_to_wait, passing
from opd.types import Metrics

FIRST_PAUSE_S = 0.25
"""Pause after the first fault; each further one doubles it, up to ``MAX_WAIT_S``."""

TELL_EVERY_S = 0.5
"""While an answer is waited for, faults are passed on this often."""

T = TypeVar("T")


class WrongAnswer(Exception):
    """A server answered with success, and not with what was asked for. The text says what is wrong."""


class OtherWeights(WrongAnswer):
    """A server answered with other weights than those that the run has given it."""


class ServerError(ModelError):
    """No server answers as it should."""


@cache
def _events() -> asyncio.AbstractEventLoop:
    """The event loop of all clients, on a thread that ends with the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="servers", daemon=True).start()
    return loop


def _close(client: httpx.AsyncClient) -> None:
    asyncio.run_coroutine_threadsafe(client.aclose(), _events())


class Requests:
    """A client of servers that give the same answers.

    Args:
        urls: their addresses.
        secret: the bearer key.
        key: the run file's key of the addresses, for error messages.
        timeout: seconds for a whole request.
        wait: seconds to go on asking.
        concurrency: largest number of requests at a time.
        max_bytes: size of the largest answer.

    Attributes:
        faults: a sentence for each attempt that failed, oldest first; ``result`` passes them on to ``tell``.
        tell: takes those sentences, such as the run's log; None keeps them.
        stale: addresses of servers that answered with other weights.
        pushed_s: seconds in which weights were sent.
        waited_s: seconds that callers of ``result`` have waited.
        received: bytes of all answers.
        ended: whether the run is over, so that no question is asked again.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        secret: Secret | None,
        key: str,
        timeout: float,
        wait: float,
        concurrency: int,
        max_bytes: int = 1 << 31,
    ) -> None:
        for url in urls:
            address(url, "", key=key)
        self.urls = [url.rstrip("/").removesuffix("/v1") for url in urls]
        self.key, self.wait = key, wait
        self.http = Http(secret, key=key, timeout=timeout, max_bytes=max_bytes)
        self.client = self.http.client()
        weakref.finalize(self, _close, self.client).atexit = False
        self.faults: deque[str] = deque()
        self.stale: set[str] = set()
        self.waited_s, self.received, self.pushed_s = 0.0, 0, 0.0
        self.tell: Callable[[str], None] | None = None
        self.ended = False
        self._thread = threading.get_ident()
        self._concurrency = concurrency
        self._free: asyncio.Semaphore | None = None
        self._busy = dict.fromkeys(self.urls, 0)
        self._failed = dict.fromkeys(self.urls, 0.0)

    def ask(self, path: str, body: Any, read: Callable[[Answer], T], *, url: str | None = None) -> Future[T]:
        """Ask in the background.

        Args:
            path: of the address, without its first slash.
            body: sent as JSON; None for a GET.
            read: turns an answer into the result, on the thread of the requests; raises ``WrongAnswer``.
            url: the only server to ask; None for any.

        Returns:
            The result, or a ``ModelError``.
        """
        return self._run(self._ask(path, body, read, url))

    def once(self, path: str, body: Any = None, *, url: str) -> Answer:
        """One attempt at one server, waited for.

        Raises:
            Refused, httpx.HTTPError, TimeoutError: as ``Http.send`` does.
        """
        method = "GET" if body is None else "POST"
        return self._run(self.http.send(self.client, method, f"{url}/{path}", body)).result()

    def result(self, future: Future[T]) -> T:
        """What was asked for, waited for."""
        started = time.perf_counter()
        try:
            while not wait([future], timeout=TELL_EVERY_S).done:
                self.tell_faults()
            return future.result()
        finally:
            self.waited_s += time.perf_counter() - started
            self.tell_faults()

    def tell_faults(self) -> None:
        """Pass on what has failed. The thread that made this client does it; on any other thread faults wait."""
        while self.tell and self.faults and threading.get_ident() == self._thread:
            self.tell(self.faults.popleft())

    def failure(self, url: str, error: Exception) -> ModelError:
        """The sentence for a server that does not answer."""
        if isinstance(error, Refused):
            return ModelError(f"{self.key}: '{url}' answered {error.words}. Fix: {self._advice(error)}")
        return ServerError(
            f"{self.key}: no answer from '{url}' ({self.http.reason(error)}). Fix: start the server, or correct "
            f"{self.key}"
        )

    def _advice(self, error: Refused) -> str:
        if error.response.status_code in (401, 403):
            return f"set the server's key in the environment variable of {self.key.rpartition('.')[0]}.api_key_env"
        return f"correct {self.key}"

    def _run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, _events())

    async def _ask(self, path: str, body: Any, read: Callable[[Answer], T], url: str | None) -> T:
        began, pause = time.monotonic(), FIRST_PAUSE_S
        self._free = self._free or asyncio.Semaphore(self._concurrency)
        while True:
            async with self._free:
                place = url or self._least_busy()
                asked: float | None = None
                self._busy[place] += 1
                try:
                    answer = await self.http.send(
                        self.client, "GET" if body is None else "POST", f"{place}/{path}", body
                    )
                    value = read(answer)
                    self.received += len(answer.body)
                    return value
                except WrongAnswer as error:
                    fault = str(error)
                    if isinstance(error, OtherWeights):
                        self.stale.add(place)
                except (httpx.HTTPError, TimeoutError) as error:
                    if not passing(error):
                        raise self.failure(place, error) from None
                    asked = asked_to_wait(error)
                    fault = error.words if isinstance(error, Refused) else self.http.reason(error)
                finally:
                    self._busy[place] -= 1
            self._failed[place] = time.monotonic()
            self.faults.append(redact_sentence(f"'{place}': {fault}"))
            if self.ended or time.monotonic() + pause - began > self.wait:
                raise ServerError(
                    f"{self.key}: '{place}' has given no right answer for {self.wait:g} s ({redact_sentence(fault)}). "
                    "Fix: correct or restart the server, and go on with --resume"
                )
            await asyncio.sleep(pause if asked is None else asked)
            pause = min(2 * pause, MAX_WAIT_S)

    def _least_busy(self) -> str:
        """The server with the fewest open requests; one that failed a moment ago comes last."""
        recent = time.monotonic() - MAX_WAIT_S
        return min(self.urls, key=lambda url: (max(self._failed[url], recent), self._busy[url]))


def measured(servers: Sequence[Requests]) -> Metrics:
    """What the servers cost since the last call: ``server_wait_s``, ``server_mb``, ``push_s``; nothing without any."""
    if not servers:
        return {}
    found = {
        "server_wait_s": sum(one.waited_s for one in servers),
        "server_mb": sum(one.received for one in servers) / 1e6,
    }
    if pushed := sum(one.pushed_s for one in servers):
        found["push_s"] = pushed
    for one in servers:
        one.waited_s, one.received, one.pushed_s = 0.0, 0, 0.0
    return found
