"""A hint author behind an OpenAI-compatible chat endpoint. Every network fault becomes a ``ModelError`` here."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from opd.errors import ModelError
from opd.teachers.hints import INSTRUCTION, parse, transcript
from opd.types import Hint, Message, Rollout

MAX_WAIT_S = 30.0
"""Longest pause between two attempts in seconds, also if the server asks for a longer one."""


class HttpAuthor:
    """A served model reads the transcript and answers in the format of ``hints.parse``.

    Args:
        url: base of the API, up to and including ``/v1``.
        model: the served model's name.
        api_key_env: environment variable with the token; the token is sent if set, and never written anywhere.
        timeout: seconds per request.
        retries: further attempts after a connection error, a timeout, status 429 or 5xx.
        concurrency: largest number of requests at a time.
        cache: folder that keeps answers across runs; None keeps them for this run only.
        max_new_tokens: longest answer, in tokens; None leaves the request's ``max_tokens`` out.
        temperature: of the answer; None leaves it out.
        extra: further fields of every request, such as ``max_completion_tokens`` or ``reasoning_effort``.
        instruction: the system message.
        see_answer: show the model the prompt's reference answer.
        key: the run file's key of this author, for error messages.

    Attributes:
        counts: number of answers by result; see ``hints.parse``.
        last_answer: the latest answer as it was written, thoughts included.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_env: str = "OPD_HINT_API_KEY",
        timeout: float = 60.0,
        retries: int = 4,
        concurrency: int = 8,
        cache: str | None = None,
        max_new_tokens: int | None = 256,
        temperature: float | None = 0.0,
        extra: Mapping[str, Any] | None = None,
        instruction: str = INSTRUCTION,
        see_answer: bool = False,
        key: str = "teacher.view.author.url",
    ) -> None:
        token = os.environ.get(api_key_env)
        self.url = f"{url.rstrip('/')}/chat/completions"
        self.model = model
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.timeout = timeout
        self.retries = retries
        self.concurrency = concurrency
        self.cache = Path(cache) if cache else None
        self.known: dict[str, str] = {}
        asked = {"temperature": temperature, "max_tokens": max_new_tokens}
        self.fields = {name: value for name, value in asked.items() if value is not None} | dict(extra or {})
        self.instruction = instruction
        self.see_answer = see_answer
        self.key = key
        self.counts: Counter[str] = Counter()
        self.last_answer: str | None = None

    def hints(self, rollouts: Sequence[Rollout]) -> list[list[Hint]]:
        """One list per rollout.

        Raises:
            ModelError: the endpoint refuses, or does not answer after all attempts.
        """
        answers = self.answers([transcript(r, self.instruction, see_answer=self.see_answer) for r in rollouts])
        self.last_answer = answers[0] if answers else self.last_answer
        return [parse(a, r, self.counts) for a, r in zip(answers, rollouts, strict=True)]

    def answers(self, conversations: Sequence[tuple[Message, ...]]) -> list[str]:
        """The served model's answer to each conversation; raises as ``hints`` does."""
        with (
            httpx.Client(timeout=self.timeout, headers=self.headers) as client,
            ThreadPoolExecutor(self.concurrency) as pool,
        ):
            return list(pool.map(lambda conversation: self._answer(client, conversation), conversations))

    def _answer(self, client: httpx.Client, conversation: tuple[Message, ...]) -> str:
        body = {"model": self.model, "messages": [dict(m) for m in conversation], **self.fields}
        key = hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()
        known = self._recall(key)
        if known is None:
            known = self._ask(client, body)
            self._remember(key, known)
        return known

    def _ask(self, client: httpx.Client, body: dict[str, Any]) -> str:
        """One answer over the network."""
        attempts = Retrying(
            stop=stop_after_attempt(self.retries + 1),
            wait=_wait,
            retry=retry_if_exception(_passing),
            reraise=True,
        )
        try:
            response = attempts(lambda: client.post(self.url, json=body).raise_for_status())
            content = response.json()["choices"][0]["message"]["content"]
        except httpx.HTTPStatusError as error:
            reply = error.response
            raise ModelError(
                f"{self.key}: '{self.url}' answered {reply.status_code}: {reply.text[:200]}. Fix: correct "
                f"{self.key}, its model or its token"
            ) from None
        except httpx.HTTPError as error:
            raise ModelError(
                f"{self.key}: no answer from '{self.url}' after {self.retries + 1} attempts "
                f"({type(error).__name__}: {error}). Fix: start the server, or correct {self.key}"
            ) from None
        except (ValueError, KeyError, IndexError, TypeError):
            raise ModelError(
                f"{self.key}: '{self.url}' does not answer as an OpenAI-compatible chat endpoint: "
                f"{response.text[:200]}. Fix: correct {self.key}"
            ) from None
        return content if isinstance(content, str) else ""

    def _recall(self, key: str) -> str | None:
        if key in self.known:
            return self.known[key]
        file = self.cache / f"{key}.json" if self.cache else None
        if file is None or not file.exists():
            return None
        stored: str = json.loads(file.read_text())["answer"]
        return stored

    def _remember(self, key: str, answer: str) -> None:
        self.known[key] = answer
        if self.cache:
            self.cache.mkdir(parents=True, exist_ok=True)
            partial = self.cache / f".{key}.{os.getpid()}"
            partial.write_text(json.dumps({"answer": answer}))
            partial.replace(self.cache / f"{key}.json")


def _passing(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, httpx.TransportError)


_backoff = wait_exponential(multiplier=0.5, max=MAX_WAIT_S)


def _wait(state: RetryCallState) -> float:
    """Seconds until the next attempt: the server's Retry-After, or twice the last pause."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, httpx.HTTPStatusError) else ""
    return min(float(asked), MAX_WAIT_S) if asked.isdigit() else _backoff(state)
