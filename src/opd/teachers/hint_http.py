"""A hint author behind an OpenAI-compatible chat endpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from opd.servers.chat import ChatEndpoint
from opd.teachers.hints import INSTRUCTION, parse, transcript
from opd.types import Hint, Message, Rollout


class HttpAuthor:
    """A served model reads the transcript and answers in the format of ``hints.parse``.

    Args:
        url: base of the API, up to and including ``/v1``.
        model: the served model's name.
        max_new_tokens: longest answer, in tokens; None leaves the request's ``max_tokens`` out.
        temperature: of the answer; None leaves it out.
        extra: further fields of every request, such as ``max_completion_tokens`` or ``reasoning_effort``.
        instruction: the system message.
        see_answer: show the model the prompt's reference answer.
        key: the run file's key of this author, for error messages.
        settings: of ``ChatEndpoint``: ``api_key_env``, ``timeout``, ``retries``, ``concurrency`` and ``cache``.

    Attributes:
        counts: number of answers by result; see ``hints.parse``.
        last_answer: the latest answer as it was written, thoughts included.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        max_new_tokens: int | None = 256,
        temperature: float | None = 0.0,
        extra: Mapping[str, Any] | None = None,
        instruction: str = INSTRUCTION,
        see_answer: bool = False,
        key: str = "teacher.view.author.url",
        **settings: Any,
    ) -> None:
        asked = {"temperature": temperature, "max_tokens": max_new_tokens}
        fields = {name: value for name, value in asked.items() if value is not None} | dict(extra or {})
        self.endpoint = ChatEndpoint(url, model, fields, key=key, **settings)
        self.instruction = instruction
        self.see_answer = see_answer
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
        return self.endpoint.answers(conversations)
