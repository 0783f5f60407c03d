"""Requests to servers that are not trusted. Every client of opd sends through here.

The time of a whole request and the size of an answer are bounded, redirects are not followed, and the key is removed
from whatever comes back as text.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
from tenacity import RetryCallState, wait_exponential

from opd.config.secrets import Secret, checked_url, redact, redact_sentence
from opd.errors import ConfigError, ModelError

MAX_WAIT_S = 30.0
"""Longest pause between two attempts in seconds, also if the server asks for a longer one."""

PACKINGS, UNPACKED = ("gzip", "deflate"), "identity"
"""Packed answers that are read. Both grow a thousandfold at most, so that no part of an answer is ever large."""

QUOTED = 200
"""Number of characters of a server's answer in an error."""


@dataclass(frozen=True)
class Answer:
    """A whole answer of status 2xx; header names are in lower case."""

    body: bytes
    headers: Mapping[str, str]

    @property
    def text(self) -> str:
        """The body as text, without the keys that this process knows."""
        return redact(self.body.decode("utf-8", "replace"))


class Refused(httpx.HTTPStatusError):
    """An answer with a status of refusal, and its text."""

    def __init__(self, response: httpx.Response, text: str) -> None:
        super().__init__("refused", request=response.request, response=response)
        self.text = text

    @property
    def words(self) -> str:
        """Status and text, as a sentence quotes them."""
        return f"{self.response.status_code}: {self.text[:QUOTED]}"


class Http:
    """One attempt at a time, within its limits.

    Args:
        secret: the bearer key.
        key: the run file's key of the address, for error messages.
        timeout: seconds for a whole request.
        max_bytes: size of the largest answer.
    """

    def __init__(self, secret: Secret | None, *, key: str, timeout: float, max_bytes: int) -> None:
        self.secret, self.key, self.timeout, self.max_bytes = secret, key, timeout, max_bytes

    def client(self) -> httpx.AsyncClient:
        """A client that sends the key.

        Raises:
            ConfigError: the environment's proxy or certificates cannot be used.
        """
        try:
            headers = {"Accept-Encoding": ", ".join(PACKINGS)}
            return httpx.AsyncClient(timeout=None, auth=_Bearer(self.secret), headers=headers)
        except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:  # not quoted: a proxy's address has keys
            raise ConfigError(
                f"{self.key}: the environment's proxy or certificates cannot be used ({type(error).__name__}). Fix: "
                "correct HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or SSL_CERT_FILE"
            ) from None

    async def send(self, client: httpx.AsyncClient, method: str, url: str, body: Any = None) -> Answer:
        """One attempt's whole answer.

        Raises:
            TimeoutError: the whole answer has not come in time, however many parts of it have.
            Refused: the status is none of success.
            httpx.HTTPError: the server cannot be reached.
            ModelError: the answer is too large.
        """
        with anyio.fail_after(self.timeout):
            async with client.stream(method, url, json=body) as response:
                self._check_packing(response, url)
                answer = Answer(await self._bounded(response, url), {k.lower(): v for k, v in response.headers.items()})
        if not response.is_success:
            raise Refused(response, answer.text)
        return answer

    def _check_packing(self, response: httpx.Response, url: str) -> None:
        """Refuse an answer that is packed twice: a few kilobytes would become gigabytes before they can be counted."""
        packed = response.headers.get("Content-Encoding", UNPACKED).strip().lower()
        if packed not in (UNPACKED, *PACKINGS):
            raise ModelError(
                f"{self.key}: the answer of '{url}' is packed as '{packed[:40]}', and not as {' or '.join(PACKINGS)}. "
                f"Fix: correct {self.key}"
            )

    async def _bounded(self, response: httpx.Response, url: str) -> bytes:
        body = bytearray()
        async for part in response.aiter_bytes(65_536):
            body += part
            if len(body) > self.max_bytes:
                raise ModelError(
                    f"{self.key}: the answer of '{url}' has more than {self.max_bytes:,} bytes. Fix: correct {self.key}"
                )
        return bytes(body)

    def reason(self, error: Exception) -> str:
        """A fault in words. What a protocol error says is not quoted, as it may hold headers."""
        if isinstance(error, TimeoutError):
            return f"no whole answer within {self.timeout:g} s"
        text = "" if isinstance(error, httpx.ProtocolError) else redact_sentence(str(error))
        return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Bearer(httpx.Auth):
    """The key enters a request here, and nowhere else."""

    def __init__(self, secret: Secret | None) -> None:
        self.secret = secret

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        if self.secret:
            request.headers["Authorization"] = f"Bearer {self.secret.reveal()}"
        yield request


def address(url: str, path: str, *, key: str) -> str:
    """The address of a path of a server.

    Raises:
        ConfigError: the base is no address, or holds credentials; the sentence does not quote it.
    """
    try:
        return str(httpx.URL(f"{checked_url(url).rstrip('/')}/{path}"))
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigError(f"{key}: {redact_sentence(str(error)).rstrip('.')}") from None


def passing(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, httpx.TransportError | TimeoutError) and not isinstance(error, httpx.LocalProtocolError)


def asked_to_wait(error: BaseException | None) -> float | None:
    """Seconds of the server's Retry-After, at most ``MAX_WAIT_S``; None without one."""
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, httpx.HTTPStatusError) else ""
    return min(float(asked), MAX_WAIT_S) if re.fullmatch("[0-9]{1,9}", asked) else None


_backoff = wait_exponential(multiplier=0.5, max=MAX_WAIT_S)


def pause(state: RetryCallState) -> float:
    """Seconds until the next attempt: the server's Retry-After, or twice the last pause."""
    asked = asked_to_wait(state.outcome.exception() if state.outcome else None)
    return _backoff(state) if asked is None else asked
