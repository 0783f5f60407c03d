"""A client of OpenAI-compatible chat endpoints. Every fault of network or server becomes one sentence here."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from anyio.from_thread import start_blocking_portal
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

from opd.config.secrets import from_environment, redact
from opd.data import strict_json
from opd.errors import ConfigError, ModelError
from opd.servers.http import QUOTED, Answer, Http, Refused, address, passing, pause
from opd.types import Message

KEY_VARIABLE = "OPD_HINT_API_KEY"
"""Environment variable with the key, unless another one is named."""

MAX_BYTES = 8_000_000
"""Largest answer; a text of a few thousand tokens has some ten kilobytes."""


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
        self.url = address(url, "chat/completions", key=key)
        place = f"{key.rpartition('.')[0]}.api_key_env".lstrip(".")
        secret = from_environment(api_key_env, key=place, needed=api_key_env != KEY_VARIABLE)
        self.http = Http(secret, key=key, timeout=timeout, max_bytes=MAX_BYTES)
        self.model, self.fields, self.key = model, dict(fields), key
        self.retries, self.concurrency = retries, concurrency
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

        async with self.http.client() as client:
            tasks = [asyncio.create_task(one(body)) for body in bodies]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

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
            wait=pause,
            retry=retry_if_exception(passing),
            reraise=True,
        )
        try:
            answer: Answer = await attempts(self.http.send, client, "POST", self.url, body)
        except Refused as error:
            raise ModelError(
                f"{self.key}: '{self.url}' answered {error.words}. Fix: correct {self.key}, its model or its key"
            ) from None
        except (httpx.HTTPError, TimeoutError) as error:
            raise ModelError(
                f"{self.key}: no answer from '{self.url}' after {self.retries + 1} "
                f"attempt{'s' if self.retries else ''} ({self.http.reason(error)}). Fix: start the server, or "
                f"correct {self.key}"
            ) from None
        text = answer.text
        try:
            return _content(strict_json.parse(text, halves=True)["choices"][0]["message"])
        except (ValueError, KeyError, IndexError, TypeError):
            raise ModelError(
                f"{self.key}: '{self.url}' does not answer as an OpenAI-compatible chat endpoint: "
                f"{text[:QUOTED]}. Fix: correct {self.key}"
            ) from None

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


def _content(message: Any) -> str:
    """The text of a message; of a list of parts, as some servers send it, that of the parts of text."""
    content = message["content"]
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part["type"] == "text")
    return _text(redact(content)) if isinstance(content, str) else ""


def _text(answer: str) -> str:
    """The answer without halves of characters, which JSON can carry and no tokenizer reads."""
    return re.sub("[\ud800-\udfff]", "\ufffd", answer)
