"""Hint authors: they read a rollout's text, find its mistakes and write a hint for each. They use no tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from opd.data.numbers import whole
from opd.data.thoughts import without_thoughts
from opd.errors import ConfigError
from opd.models.chat import Chat
from opd.models.language import LanguageModel, stop_ids
from opd.models.messages import lines_of
from opd.types import Engine, Event, Hint, Message, Prompt, Rollout, Sampling, Span

TEMPLATES: Mapping[str, str] = {
    "unknown_tool": "Reminder: available tools: {tools}.",
    "bad_arguments": "Reminder: this call is not valid: {error}. available tools: {tools}.",
    "bad_json": "Reminder: this is {error}. A call is JSON with name and arguments. available tools: {tools}.",
    "no_call": "Reminder: call a tool before you answer. available tools: {tools}.",
}
"""The rules' hint for each kind of event; fields are the event's details."""

INSTRUCTION = "Find the faulty turns. Answer with one line per faulty turn, 'turn N: hint', or 'none'."
"""Instruction for a model that writes hints."""

_AT_LINE_START = re.compile(
    r"^[ \t>#*_`•-]*+(?:\d+[.)][ \t]*+)?[*_`]*+turn\s*(\d+)[ \t*_`]*:[*_`]*", re.IGNORECASE | re.MULTILINE
)
"""A hint's beginning, with Markdown around it."""

_IN_ONE_LINE = re.compile(r"\bturn\s*(\d+)\s*:", re.IGNORECASE)
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n")


class RulesAuthor:
    """Writes a hint for every environment event that has a template.

    Args:
        templates: replace or add to ``TEMPLATES``; None for no hint about this kind of event.
        span: what the teacher scores after the hint: the whole turn, the tokens of the fault, or the first of them.
    """

    def __init__(
        self, templates: Mapping[str, str | None] | None = None, *, span: Literal["turn", "fault", "token"] = "turn"
    ) -> None:
        merged = {**TEMPLATES, **(templates or {})}
        self.templates = {kind: text for kind, text in merged.items() if text is not None}
        self.span = span

    def hints(self, rollouts: Sequence[Rollout]) -> list[list[Hint]]:
        """One list per rollout.

        Raises:
            ConfigError: a template names a field that the event does not have.
        """
        return [[self._hint(r, e) for e in r.events if e.kind in self.templates] for r in rollouts]

    def _hint(self, rollout: Rollout, event: Event) -> Hint:
        spans = {"turn": rollout.turns[event.turn], "fault": event.span}
        spans["token"] = Span(event.span.start, event.span.start + 1)
        return Hint(spans[self.span], self._text(event))

    def _text(self, event: Event) -> str:
        try:
            return self.templates[event.kind].format(**event.detail)
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(
                f"teacher.view.author.templates.{event.kind} has the field {error}, and events of this kind have "
                f"{', '.join(event.detail) or 'no fields'}. Fix: use only these"
            ) from None


class ModelAuthor:
    """A local model reads the transcript and answers in a small strict format.

    Args:
        engine: generates with the critic.
        chat: the critic's own template.
        stop_ids: ids that end its answer.
        max_new_tokens: the longest answer.
        instruction: its system message.
        see_answer: show it the prompt's reference answer.
        max_length: the most tokens transcript and answer may have; longer transcripts are dropped and counted.

    Attributes:
        counts: number of answers by result; see ``parse``.
        last_answer: the latest answer as it was written, thoughts included.
    """

    def __init__(
        self,
        engine: Engine,
        chat: Chat,
        *,
        stop_ids: frozenset[int],
        max_new_tokens: int = 256,
        instruction: str = INSTRUCTION,
        see_answer: bool = False,
        max_length: int | None = None,
    ) -> None:
        self.engine = engine
        self.chat = chat
        self.stop_ids = stop_ids
        self.max_new_tokens = max_new_tokens
        self.instruction = instruction
        self.see_answer = see_answer
        self.max_length = max_length
        self.counts: Counter[str] = Counter()
        self.last_answer: str | None = None

    def hints(self, rollouts: Sequence[Rollout]) -> list[list[Hint]]:
        """One list per rollout; the model answers greedily."""
        answers = self.answers([transcript(r, self.instruction, see_answer=self.see_answer) for r in rollouts])
        self.last_answer = next((a for a in answers if a is not None), self.last_answer)
        pairs = zip(answers, rollouts, strict=True)
        return [[] if answer is None else parse(answer, r, self.counts) for answer, r in pairs]

    def answers(self, conversations: Sequence[tuple[Message, ...]]) -> list[str | None]:
        """What the model says at the end of each; None where it is too long to be read, which is counted."""
        safe = [tuple(map(self.chat.harmless.message, conversation)) for conversation in conversations]
        contexts = [self.chat.prompt_ids(Prompt(id=str(n), messages=c)) for n, c in enumerate(safe)]
        room = self.max_length - self.max_new_tokens if self.max_length else None
        fits = [i for i, context in enumerate(contexts) if room is None or len(context) <= room]
        self.counts["too_long"] += len(contexts) - len(fits)
        self.engine.sync()
        written = self.engine.generate(
            [contexts[i] for i in fits],
            [self.max_new_tokens] * len(fits),
            sampling=Sampling(temperature=0),
            stop_ids=self.stop_ids,
            seed=0,
        )
        found: list[str | None] = [None] * len(contexts)
        for index, answer in zip(fits, written, strict=True):
            found[index] = self.chat.turn_text(answer.ids, self.stop_ids)
        return found


def local_author(
    critic: LanguageModel, *, max_new_tokens: int, instruction: str = INSTRUCTION, see_answer: bool = False
) -> ModelAuthor:
    """An author that generates greedily with a model on this machine."""
    from opd.engines.hf import HFEngine

    return ModelAuthor(
        HFEngine(critic),
        Chat(critic.tokenizer),
        stop_ids=stop_ids(critic),
        max_new_tokens=max_new_tokens,
        max_length=critic.max_length,
        instruction=instruction,
        see_answer=see_answer,
    )


def transcript(rollout: Rollout, instruction: str, *, see_answer: bool = False) -> tuple[Message, ...]:
    """A rollout as a model reads it, its turns numbered from 1.

    Args:
        instruction: the system message.
        see_answer: put the prompt's reference answer, if it has one, above the transcript.
    """
    lines = lines_of(rollout.prompt)
    turn = 0
    for message in rollout.transcript:
        if message["role"] == "assistant":
            turn += 1
            lines.append(f"turn {turn}: {message['content']}")
        else:
            lines.append(f"{message['role']}: {message['content']}")
    answer = f"Reference answer: {rollout.prompt.answer}\n" if see_answer and rollout.prompt.answer is not None else ""
    return (
        {"role": "system", "content": instruction},
        {"role": "user", "content": answer + "Transcript:\n" + "\n".join(lines)},
    )


def parse(answer: str, rollout: Rollout, counts: Counter[str]) -> list[Hint]:
    """Hints in an answer with lines ``turn N: hint``, or with the line ``none``.

    Thoughts, Markdown around ``turn N:`` and other lines are left out. A hint ends with its paragraph. An answer of one
    line that starts with a hint may have several. Nothing else is guessed: what does not parse is dropped. ``counts``
    gets one more of ``written`` per hint, of ``none`` or ``unparsable`` per answer without any, and of ``bad_turn`` or
    ``empty`` per hint dropped.
    """
    text = without_thoughts(answer)
    in_one_line = "\n" not in text and _IN_ONE_LINE.match(text)
    _, *parts = (_IN_ONE_LINE if in_one_line else _AT_LINE_START).split(text)
    if not parts:
        none = any(line.strip(" \t*_`.").lower() == "none" for line in text.splitlines())
        counts["none" if none else "unparsable"] += 1
        return []
    found = []
    for number, rest in zip(parts[::2], parts[1::2], strict=True):
        turn, hint = (whole(number) or 0) - 1, _PARAGRAPH_END.split(rest.strip(), maxsplit=1)[0].strip()
        if not 0 <= turn < len(rollout.turns):
            counts["bad_turn"] += 1
        elif not hint:
            counts["empty"] += 1
        else:
            counts["written"] += 1
            found.append(Hint(rollout.turns[turn], hint))
    return found
