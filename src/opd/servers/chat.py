"""A client of OpenAI-compatible chat endpoints. Every fault of network or server becomes one sentence here.

A server is not trusted: the time of a whole request and the size of an answer are bounded, redirects are not followed,
and the key is removed from whatever comes back.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import httpx
from anyio.from_thread import start_blocking_portal
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential

from opd.config.secrets import Secret, checked_url, from_environment, redact, redact_sentence
from opd.data import strict_json
from opd.errors import ConfigError, ModelError
from opd.types import Message

KEY_VARIABLE = "OPD_HINT_API_KEY"
"""Environment variable with the key, unless another one is named."""

MAX_WAIT_S = 30.0
"""Longest pause between two attempts in seconds, also if the server asks for a longer one."""

MAX_BYTES = 8_000_000
"""Largest answer; a text of a few thousand tokens has some ten kilobytes."""

QUOTED = 200
"""Number of characters of a server's answer in an error."""


class ChatEndpoint:
    """A served model that answers conversations.

    Args:
        url: base of the API, up to and including ``/v1``.
        model: the served model's name.
        fields: of every request, beside model and messages.
        api_key_env: environment variable with the key; the key is sent if it is set, and never written anywhere.
        timeout: seconds for a whole request.
        retries: further attempts after a connection error, a timeout, status 429 or 5xx.
        concurrency: largest number of requests at a time.
        cache: folder that keeps answers across runs; None keeps them for this run only.
        key: the run file's key of the address, for error messages.

    Raises:
        ConfigError: the address or the key cannot be used; nothing has been sent.
    """

    def __init__(
        self,
        url: str,
        model: str,
        fields: Mapping[str, Any],
        *,
        api_key_env: str = KEY_VARIABLE,
        timeout: float = 60.0,
        retries: int = 4,
        concurrency: int = 8,
        cache: str | None = None,
        key: str,
    ) -> None:
        try:
            self.url = str(httpx.URL(f"{checked_url(url).rstrip('/')}/chat/completions"))
        except (ValueError, httpx.InvalidURL) as error:
            raise ConfigError(f"{key}: {redact_sentence(str(error)).rstrip('.')}") from None
        place = f"{key.rpartition('.')[0]}.api_key_env".lstrip(".")
        self.secret = from_environment(api_key_env, key=place, needed=api_key_env != KEY_VARIABLE)
        self.model, self.fields, self.key = model, dict(fields), key
        self.timeout, self.retries, self.concurrency = timeout, retries, concurrency
        self.cache = Path(cache) if cache else None
        self.known: dict[str, str] = {}

    def answers(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """The answer to each conversation; empty where the server sends no text.

        Raises:
            ModelError: the server refuses, or does not answer after all attempts.
        """
        bodies = [{"model": self.model, "messages": [dict(m) for m in c], **self.fields} for c in conversations]
        with start_blocking_portal("asyncio") as portal:
            return portal.call(self._all, bodies)

    async def _all(self, bodies: Sequence[dict[str, Any]]) -> list[str]:
        at_a_time = asyncio.Semaphore(self.concurrency)

        async def one(body: dict[str, Any]) -> str:
            async with at_a_time:
                return await self._answer(client, body)

        async with self._client() as client:
            tasks = [asyncio.create_task(one(body)) for body in bodies]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

    def _client(self) -> httpx.AsyncClient:
        try:
            return httpx.AsyncClient(timeout=None, auth=_Bearer(self.secret))
        except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:  # not quoted: a proxy's address has keys
            raise ConfigError(
                f"{self.key}: the environment's proxy or certificates cannot be used ({type(error).__name__}). Fix: "
                "correct HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or SSL_CERT_FILE"
            ) from None

    async def _answer(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        name = hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()
        known = self._recall(name)
        if known is None:
            known = await self._ask(client, body)
            self._remember(name, known)
        return known

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        """One answer over the network."""
        attempts = AsyncRetrying(
            stop=stop_after_attempt(self.retries + 1),
            wait=_wait,
            retry=retry_if_exception(_passing),
            reraise=True,
        )
        try:
            text: str = await attempts(self._send, client, body)
        except _Refused as error:
            raise ModelError(
                f"{self.key}: '{self.url}' answered {error.response.status_code}: {error.text[:QUOTED]}. Fix: correct "
                f"{self.key}, its model or its key"
            ) from None
        except (httpx.HTTPError, TimeoutError) as error:
            raise ModelError(
                f"{self.key}: no answer from '{self.url}' after {self.retries + 1} "
                f"attempt{'s' if self.retries else ''} ({self._reason(error)}). Fix: start the server, or "
                f"correct {self.key}"
            ) from None
        try:
            return _content(strict_json.parse(text, halves=True)["choices"][0]["message"])
        except (ValueError, KeyError, IndexError, TypeError):
            raise ModelError(
                f"{self.key}: '{self.url}' does not answer as an OpenAI-compatible chat endpoint: "
                f"{text[:QUOTED]}. Fix: correct {self.key}"
            ) from None

    async def _send(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        """The text of one attempt's answer.

        Raises:
            TimeoutError: the whole answer has not come in time, however many parts of it have.
            httpx.HTTPError: the server cannot be reached, or refuses.
            ModelError: the answer is too large.
        """
        with anyio.fail_after(self.timeout):
            async with client.stream("POST", self.url, json=body) as response:
                text = redact((await self._bounded(response)).decode("utf-8", "replace"))
        if not response.is_success:
            raise _Refused(response, text)
        return text

    async def _bounded(self, response: httpx.Response) -> bytes:
        body = bytearray()
        async for part in response.aiter_bytes(65_536):
            body += part
            if len(body) > MAX_BYTES:
                raise ModelError(
                    f"{self.key}: the answer of '{self.url}' has more than {MAX_BYTES:,} bytes. Fix: correct {self.key}"
                )
        return bytes(body)

    def _reason(self, error: Exception) -> str:
        """A fault in words. What a protocol error says is not quoted, as it may hold headers."""
        if isinstance(error, TimeoutError):
            return f"no whole answer within {self.timeout:g} s"
        text = "" if isinstance(error, httpx.ProtocolError) else redact_sentence(str(error))
        return f"{type(error).__name__}: {text}" if text else type(error).__name__

    def _recall(self, name: str) -> str | None:
        """A kept answer; None without one, or if its file was damaged or belongs to another question."""
        if name not in self.known and self.cache:
            try:
                kept = strict_json.parse((self.cache / f"{name}.json").read_bytes())
            except (OSError, ValueError):
                return None
            if isinstance(kept, dict) and kept.get("question", name) == name and isinstance(kept.get("answer"), str):
                self.known[name] = _text(redact(kept["answer"]))
        return self.known.get(name)

    def _remember(self, name: str, answer: str) -> None:
        self.known[name] = answer
        if self.cache:
            partial = self.cache / f".{name}.{os.getpid()}"
            try:
                self.cache.mkdir(parents=True, exist_ok=True)
                partial.write_text(json.dumps({"question": name, "answer": answer}), encoding="utf-8")
                partial.replace(self.cache / f"{name}.json")
            except OSError as error:
                raise ConfigError(
                    f"{self.key.rpartition('.')[0]}.cache: '{self.cache}' cannot be written ({error.strerror}). Fix: "
                    "name another folder, or leave it out"
                ) from None


class _Bearer(httpx.Auth):
    """The key enters a request here, and nowhere else."""

    def __init__(self, secret: Secret | None) -> None:
        self.secret = secret

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        if self.secret:
            request.headers["Authorization"] = f"Bearer {self.secret.reveal()}"
        yield request


class _Refused(httpx.HTTPStatusError):
    """An answer with a status of refusal, and its text."""

    def __init__(self, response: httpx.Response, text: str) -> None:
        super().__init__("refused", request=response.request, response=response)
        self.text = text


def _content(message: Any) -> str:
    """The text of a message; of a list of parts, as some servers send it, that of the parts of text."""
    content = message["content"]
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part["type"] == "text")
    return _text(redact(content)) if isinstance(content, str) else ""


def _text(answer: str) -> str:
    """The answer without halves of characters, which JSON can carry and no tokenizer reads."""
    return re.sub("[\ud800-\udfff]", "\ufffd", answer)


def _passing(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, httpx.TransportError | TimeoutError) and not isinstance(error, httpx.LocalProtocolError)


_backoff = wait_exponential(multiplier=0.5, max=MAX_WAIT_S)


def _wait(state: RetryCallState) -> float:
    """Seconds until the next attempt: the server's Retry-After, or twice the last pause."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, httpx.HTTPStatusError) else ""
    return min(float(asked), MAX_WAIT_S) if re.fullmatch("[0-9]{1,9}", asked) else _backoff(state)
