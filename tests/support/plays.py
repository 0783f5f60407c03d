"""An engine for tests of runs whose rollouts have to say something in particular."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opd.models.chat import Chat
from opd.types import Generation


class Plays:
    """An engine that says one text after the other, whoever asks; only the probabilities are a model's."""

    def __init__(self, chat: Chat, *texts: str) -> None:
        self.turns = [(*chat.insert_text_ids(text), *chat.turn_end_ids) for text in texts]
        self.contexts: list[tuple[int, ...]] = []

    def generate(self, contexts: Sequence[Sequence[int]], max_new_tokens: Sequence[int], **_: Any) -> list[Generation]:
        ids = self.turns[len(self.contexts) % len(self.turns)]
        self.contexts.append(tuple(contexts[0]))
        return [Generation(ids, (-1.0,) * len(ids), True) for _ in contexts]

    def sync(self) -> None: ...
