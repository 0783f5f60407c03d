"""The prompts of a run in tokens: rendered, checked and counted before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from opd.data.rows import Note
from opd.errors import DataError
from opd.models.chat import Chat
from opd.models.rendering import check_rendering
from opd.types import Prompt

BATCH = 1024
"""Number of prompts that are rendered and encoded at a time."""

MARGIN = 8
"""Tokens that a tokenizer may add to a text: at its start, and at its end."""


@dataclass(frozen=True)
class Rendered:
    """Prompts as one model reads them, all of them checked.

    Attributes:
        key: the run file's key of the prompts, for error messages.
        chat: the model's template.
        prompts: at least one.
        hashes: of the rendered texts.
        bounds: the largest possible number of tokens of each; see ``of``.
    """

    key: str
    chat: Chat
    prompts: list[Prompt]
    hashes: list[int]
    bounds: list[int]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], chat: Chat, *, key: str) -> Rendered:
        """Render and check prompts.

        A token of an ASCII text has at least one of its characters, whatever the tokenizer's normalization. That bound
        is kept for such texts, and only those that may exceed a limit are counted. Other texts have no bound.

        Raises:
            DataError: a part of a prompt does not reach the model.
            ModelError: the template refuses a prompt.
        """
        hashes: list[int] = []
        bounds: list[int] = []
        for start in range(0, len(prompts), BATCH):
            some = prompts[start : start + BATCH]
            texts = chat.prompt_texts(some)
            check_rendering(some, texts, chat, key=key)
            hashes += map(hash, texts)
            bounds += [len(text) + MARGIN if text.isascii() else UNBOUNDED for text in texts]
        return cls(key, chat, list(prompts), hashes, bounds)

    @cached_property
    def lengths(self) -> list[int]:
        """The number of tokens of each prompt."""
        return self._counted(range(len(self.prompts)))

    def longer_than(self, most: int) -> dict[int, int]:
        """The prompts of more tokens than a limit, by index, with their numbers of tokens."""
        suspects = [i for i, bound in enumerate(self.bounds) if bound > most]
        return {i: n for i, n in zip(suspects, self._counted(suspects), strict=True) if n > most}

    def within(self, most: int | None, note: Note) -> Rendered:
        """These prompts without those of more than ``most`` tokens, and a note of how many were left out.

        Raises:
            DataError: none is left.
        """
        long = self.longer_than(most) if most is not None else {}
        if not long:
            return self
        if len(long) == len(self.prompts):
            raise DataError(
                f"{self.key}.max_tokens={most} leaves no prompt (the shortest has {min(long.values())} tokens). Fix: "
                "raise it"
            )
        note(f"{self.key}: {len(long)} of {len(self.prompts)} prompts left out, of more than {most} tokens")
        kept = [i for i in range(len(self.prompts)) if i not in long]
        return replace(
            self,
            prompts=[self.prompts[i] for i in kept],
            hashes=[self.hashes[i] for i in kept],
            bounds=[self.bounds[i] for i in kept],
        )

    def by(self, chat: Chat) -> Rendered:
        """The same prompts as another model reads them."""
        return Rendered.of(self.prompts, chat, key=self.key)

    def check_room(
        self, budget: int, room: int | None, *, setting: str, reader: str = "", served: bool = False
    ) -> None:
        """Check that every prompt leaves room for an answer.

        Args:
            budget: tokens of the longest answer.
            room: positions of the model; None for no limit.
            setting: the run file's key of the budget.
            reader: words about the model, if it is not the student.
            served: whether it is behind a server, which may have been started with fewer positions than it has.

        Raises:
            DataError: the longest prompt is too long.
        """
        long = self.longer_than(room - budget) if room is not None else {}
        if not long:
            return
        worst = max(long, key=long.__getitem__)
        left = (room or 0) - budget
        filter_them = f", or leave longer ones out with {self.key}.max_tokens={left}" if left > 0 and not reader else ""
        if served:
            filter_them = f", or start the server with --max-model-len {long[worst] + budget}"
        raise DataError(
            f"{self.key}: prompt '{self.prompts[worst].id}' has {long[worst]} tokens{reader}, and with {setting}="
            f"{budget} exceeds the model's {room}. Fix: lower {setting} or shorten the prompt{filter_them}"
        )

    def _counted(self, indices: Sequence[int]) -> list[int]:
        lengths: list[int] = []
        for start in range(0, len(indices), BATCH):
            some = [self.prompts[i] for i in indices[start : start + BATCH]]
            lengths += self.chat.prompt_lengths(some, self.chat.prompt_texts(some))
        return lengths


UNBOUNDED = 2**31
"""The bound of a text that may have any number of tokens."""


def note_overlap(training: Rendered, held_out: Rendered, note: Note) -> None:
    """Note how many held-out prompts read as training prompts do."""
    trained = set(training.hashes)
    same = sum(text in trained for text in held_out.hashes)
    if same:
        note(
            f"WARNING {held_out.key}: {same} of {len(held_out.hashes)} held-out prompts are training prompts too, so "
            "they show nothing about new prompts. Fix: name another split or file"
        )
