"""Chat templates: the only module that knows them.

A trajectory is built from token ids that are never decoded and tokenised again. The ids that a template puts between
two assistant turns are those that follow a marker when a small conversation is rendered with the marker as content.

The end of a turn is the template's own (``Chat.turn_end_ids``), which need not be the tokenizer's EOS token:
``<|im_end|>``, ``<|eot_id|>``, ``<end_of_turn>`` or ``<|end|>``. Reference answers end with it, sampling stops at it,
and after a sampled turn only the part of it that was not sampled is inserted.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import groupby, takewhile
from typing import Any

from jinja2 import TemplateSyntaxError

from opd.errors import ModelError
from opd.models.harmless import Harmless
from opd.models.messages import MessageForms
from opd.models.templates import render
from opd.types import Message, Prompt, Span

_PROBE = (
    "Any tokenizer splits this in its own way: 3.14159 * (x_1 + 22) == naïve café, été; \n\tdef f(): return '漢字 😀'"
)
_MARKER = "MARKER"
_OPENING: tuple[Message, ...] = ({"role": "user", "content": "a"},)
_ASKED: tuple[Message, ...] = ({"role": "user", "content": _MARKER},)
_TURN: tuple[Message, ...] = (*_OPENING, {"role": "assistant", "content": _MARKER})


class Chat:
    """A tokenizer with its chat template, if it has one.

    Args:
        tokenizer: a Hugging Face tokenizer.
        kwargs: arguments of the template, such as ``enable_thinking``.
    """

    def __init__(self, tokenizer: Any, kwargs: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.kwargs = dict(kwargs or {})
        self._others: dict[str, Chat] = {}

    def of(self, prompt: Prompt) -> Chat:
        """The chat with the arguments that a prompt gives its template."""
        if prompt.chat_template_kwargs == self.kwargs:
            return self
        key = json.dumps(prompt.chat_template_kwargs, sort_keys=True, default=str)
        return self._others.setdefault(key, Chat(self.tokenizer, prompt.chat_template_kwargs))

    @property
    def label(self) -> str:
        """What tells this tokenizer and its template from others; the whole vocabulary would take a second."""
        added = sorted(self.tokenizer.get_added_vocab().items())
        tree = [self.tokenizer.chat_template, len(self.tokenizer), added, self.insert_text_ids(_PROBE)]
        return hashlib.sha256(json.dumps(tree).encode()).hexdigest()

    @property
    def has_template(self) -> bool:
        return bool(self.tokenizer.chat_template)

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """The tokens a student continues: messages through the template, text as it is.

        Raises:
            ModelError: messages, and the tokenizer has no template or its template refuses them.
        """
        chat, text = prompt.messages is not None, self.prompt_text(prompt)
        return self.insert_text_ids(text) if chat else self._opened(self.tokenizer(text)["input_ids"])

    def prompt_text(self, prompt: Prompt) -> str:
        """The text of ``prompt_ids``: messages and tools as the template renders them, or the plain text.

        Raises:
            ModelError: as for ``prompt_ids``.
        """
        if prompt.messages is None:
            return prompt.text or ""
        return self.of(prompt)._render(prompt.messages, generate=True, tools=prompt.tools)

    def prompt_texts(self, prompts: Sequence[Prompt]) -> list[str]:
        """``prompt_text`` of each prompt; prompts without tools are rendered together, which halves the time.

        Raises:
            ModelError: as for ``prompt_ids``; the sentence names the prompt.
        """
        texts: list[str] = []
        for (_, single), alike in groupby(prompts, key=lambda p: (id(self.of(p)), p.messages is None or bool(p.tools))):
            some = list(alike)
            texts += [self._named_text(p) for p in some] if single else self.of(some[0])._rendered_together(some)
        return texts

    def prompt_lengths(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[int]:
        """The number of ``prompt_ids`` of each prompt, given their ``prompt_texts``."""
        lengths: list[int] = []
        for plain, pairs in groupby(zip(prompts, texts, strict=True), key=lambda pair: pair[0].messages is None):
            encoded = self.tokenizer([text for _, text in pairs], add_special_tokens=plain)["input_ids"]
            lengths += [len(self._opened(ids) if plain else ids) for ids in encoded]
        return lengths

    def insert_text_ids(self, text: str) -> tuple[int, ...]:
        """The tokens of a text without any special token around them."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def harmless(self) -> Harmless:
        """Makes texts of models, servers and environments unable to open a turn."""
        return Harmless(self.tokenizer)

    def _opened(self, ids: list[int]) -> tuple[int, ...]:
        """The tokens of a plain text, less the EOS token of a tokenizer that closes every text: something follows."""
        closed = len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id != self.tokenizer.bos_token_id
        return tuple(ids[:-1] if closed else ids)

    @cached_property
    def generation_ids(self) -> tuple[int, ...]:
        """The tokens that the template puts in front of an assistant turn."""
        return self._behind(_ASKED, generate=True)[len(self._message_end_ids) :]

    @cached_property
    def turn_end_ids(self) -> tuple[int, ...]:
        """The tokens that end an assistant turn, so that generation stops at the last of them.

        They are the template's tokens after a turn's content, through the last special one; whatever follows, such as a
        newline, stands between turns. A turn end in plain text is followed by the tokenizer's EOS token. Without a
        template, or if the template ends turns with nothing, they are the EOS token alone.
        """
        end = self._template_end_ids
        return end if end and end[-1] in self._special_ids else end + self._eos_ids

    def end_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """The tokens that end an answer to a prompt: the template's turn end for messages, EOS for plain text.

        Raises:
            ModelError: there is no such token.
        """
        ids = self._eos_ids if prompt.messages is None else self.of(prompt).turn_end_ids
        if not ids:
            raise ModelError(
                f"the tokenizer of '{self.tokenizer.name_or_path}' has no EOS token and its template no turn end, "
                "so no answer could end. Fix: set tokenizer.eos_token"
            )
        return ids

    def content_ids(self, turn_ids: Sequence[int]) -> tuple[int, ...]:
        """An assistant turn without its end, or as it is if it was cut."""
        ids, whole, end = tuple(turn_ids), self.turn_end_ids, self._template_end_ids
        for known in (whole, end, whole[-1:]):
            if known and ids[-len(known) :] == known:
                return ids[: -len(known)]
        return ids

    def message_ids(self, messages: Message | Sequence[Message], turn_ids: Sequence[int]) -> tuple[int, ...]:
        """The tokens between a finished assistant turn and the next turn's first token.

        They are the rest of the template's turn end, the messages, and the generation prompt. A stop token that was
        sampled is never inserted again. If the turn stopped at another token than the template's turn end, such as
        ``<|endoftext|>``, that token stays in the trajectory, since the student chose it, and the template's turn end
        is inserted after it: the next turn then stands behind a turn that ended as the template ends turns.

        Args:
            messages: the environment's answer, one message or several.
            turn_ids: the turn as sampled, its stop token included.

        Raises:
            ModelError: the template does not allow a message's role there.
        """
        answer = [self.harmless.message(m) for m in ([messages] if isinstance(messages, Mapping) else messages)]
        fix = "let the environment answer in a role that the template takes, such as user"
        between = self._behind([*_TURN, *answer], generate=True, fix=fix)
        end, ids = self._template_end_ids, tuple(turn_ids)
        if end and between[: len(end)] == end:
            if end[-1] in self._special_ids:
                ended = ids[-1:] == end[-1:]
            else:
                ended = ids[-len(end) :] == end or ids[-len(self.turn_end_ids) :] == self.turn_end_ids
            if ended:
                return between[len(end) :]
        return between[1:] if between[:1] == ids[-1:] else between

    def above_turn(self, history_ids: tuple[int, ...], message: Message) -> tuple[int, ...]:
        """A history that ends in the generation prompt, with a message inserted right before that prompt.

        Without a template the message's text is appended.

        Raises:
            ModelError: the history does not end in the template's generation prompt.
        """
        message = self.harmless.message(message)
        if not self.has_template:
            return history_ids + self.insert_text_ids(message["content"])
        opening = self.generation_ids
        kept = len(history_ids) - len(opening)
        if history_ids[kept:] != opening:
            raise ModelError(
                "a hint cannot be inserted above this turn: its history does not end in the chat template's generation "
                f"prompt {self.decode(opening, skip_special_tokens=False)!r}. Fix: take a model whose chat template is "
                "the same at every turn, or set another teacher.view"
            )
        return history_ids[:kept] + self._standing_alone(message)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text for people and checkers; nothing is ever trained on it."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def turn_text(self, turn_ids: Sequence[int], stop_ids: Collection[int] = ()) -> str:
        """The text of an assistant turn with its special tokens, but without its end, BOS and padding.

        Args:
            turn_ids: the turn as sampled.
            stop_ids: ids that end a turn, besides the template's turn end and EOS.
        """
        return self._text(turn_ids, self._shown(turn_ids, stop_ids))

    def token_span(self, turn_ids: Sequence[int], characters: tuple[int, int], stop_ids: Collection[int] = ()) -> Span:
        """The tokens of a turn that hold a range of characters of its ``turn_text``; at least one."""
        shown = self._shown(turn_ids, stop_ids)
        text = self._text(turn_ids, shown)
        if not shown:
            return Span(0, len(turn_ids))

        def holding(characters: int) -> int:
            """The number of tokens shown that hold this many characters; a piece of a character does not count."""
            return bisect_left(range(len(shown)), characters, key=lambda n: self._agreed(turn_ids, shown[:n], text))

        start, stop = characters[0], max(characters[0] + 1, characters[1])
        first, last = min(holding(start), holding(start + 1) - 1), holding(min(stop, len(text))) - 1
        return Span(shown[max(first, 0)], shown[max(first, last, 0)] + 1)

    def _agreed(self, turn_ids: Sequence[int], positions: Sequence[int], text: str) -> int:
        """The number of characters that some of a turn's first tokens share with its text."""
        pairs = zip(self._text(turn_ids, positions), text, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _shown(self, turn_ids: Sequence[int], stop_ids: Collection[int]) -> list[int]:
        """Positions of a turn's tokens that its text shows."""
        stop = len(self.content_ids(turn_ids))
        if stop == len(turn_ids) and turn_ids[-1:] and turn_ids[-1] in (*stop_ids, *self._eos_ids):
            stop -= 1
        unwritten = {self.tokenizer.bos_token_id, self.tokenizer.pad_token_id}
        return [p for p in range(stop) if turn_ids[p] not in unwritten]

    def _text(self, turn_ids: Sequence[int], positions: Sequence[int]) -> str:
        return self.decode([turn_ids[p] for p in positions], skip_special_tokens=False)

    @cached_property
    def _eos_ids(self) -> tuple[int, ...]:
        eos = self.tokenizer.eos_token_id
        return () if eos is None else (eos,)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        """Tokens that text cannot be split into by accident; added tokens count, but not runs of spaces."""
        added = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.content.strip()}
        return frozenset(added | set(self.tokenizer.all_special_ids))

    @cached_property
    def _message_end_ids(self) -> tuple[int, ...]:
        """What the template puts after a user message, whether or not an answer follows."""
        return _common(self._behind(_ASKED, generate=False), self._behind(_ASKED, generate=True))

    @cached_property
    def _template_end_ids(self) -> tuple[int, ...]:
        """What the template puts after an assistant turn's content; nothing if it takes no such turn.

        Some templates close a conversation with a further token, and some leave its last turn open, so this is what the
        last turn of a conversation and an earlier one have in common.
        """
        if not self.has_template:
            return ()
        try:
            last = self._behind(_TURN, generate=False)
        except ModelError:
            return ()
        try:
            earlier = self._behind([*_TURN, *_OPENING], generate=False)
        except ModelError:
            earlier = last
        header = self.insert_text_ids(self._render(_ASKED, generate=False).partition(_MARKER)[0])
        starts = self._special_ids & set(header)
        if last:  # the header of a next turn, which a template may always write, is no part of it
            end = _common(last, earlier)
            end = end[:1] + tuple(takewhile(lambda i: i not in starts, end[1:]))
        else:
            end = tuple(takewhile(lambda i: i not in starts, earlier))
        closing = [n for n, token in enumerate(end, 1) if token in self._special_ids]
        if closing:
            return end[: closing[-1]]
        return self._after_text(self.decode(end, skip_special_tokens=False).rstrip()) if last else ()

    def _standing_alone(self, message: Message) -> tuple[int, ...]:
        """A message after a finished one, and the generation prompt; the end of the message before is not repeated."""
        kept = len(self._message_end_ids)
        other = "assistant" if message["role"] == "user" else "user"  # a template without two users alternates
        fix = f"set teacher.view.role to a role that the template takes, such as {other}"
        whole = self._behind([*_ASKED, message], generate=True, fix=fix)
        before = {self._render(m, generate=True).partition(_MARKER)[0] for m in (_ASKED, [*_ASKED, message])}
        if whole[:kept] != self._message_end_ids or len(before) > 1:
            raise ModelError(
                f"teacher.view.role: the chat template changes what comes before a message of role "
                f"'{message['role']}'. Fix: set teacher.view.role to another role"
            )
        return whole[kept:]

    def _behind(self, messages: Sequence[Message], *, generate: bool, fix: str = "") -> tuple[int, ...]:
        """The tokens that the template puts after the marker in a conversation."""
        return self._after_text(self._render(messages, generate=generate, fix=fix).partition(_MARKER)[2])

    def _after_text(self, text: str) -> tuple[int, ...]:
        """The tokens of a text that follows other text, so that no token for the start of a text is added."""
        whole, start = self.insert_text_ids(_MARKER + text), self.insert_text_ids(_MARKER)
        return whole[len(start) :] if whole[: len(start)] == start else self.insert_text_ids(text.lstrip(" "))

    @cached_property
    def _forms(self) -> MessageForms:
        def text_of(messages: Sequence[Message]) -> str | None:
            try:
                text: str = self._rendered(messages, generate=False)
            except ModelError:
                raise
            except Exception:
                return None
            return text

        return MessageForms(text_of)

    def _rendered(
        self, messages: Sequence[Any], *, generate: bool, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> Any:
        """``render`` with this chat's tokenizer and arguments."""
        return render(self.tokenizer, messages, generate=generate, tools=tools, kwargs=self.kwargs)

    def _rendered_together(self, prompts: Sequence[Prompt]) -> list[str]:
        try:
            texts: list[str] = self._rendered([self._forms(p.messages or ()) for p in prompts], generate=True)
        except ModelError:
            raise
        except Exception:  # one of them is refused: which one, and why, is found below
            texts = [self._named_text(prompt) for prompt in prompts]
        return texts

    def _named_text(self, prompt: Prompt) -> str:
        try:
            return self.prompt_text(prompt)
        except ModelError as error:
            raise ModelError(f"prompt '{prompt.id}': {error}") from error.__cause__

    def _render(
        self,
        messages: Sequence[Message],
        *,
        generate: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        fix: str = "",
    ) -> str:
        if not self.has_template:
            raise ModelError(
                f"the tokenizer of '{self.tokenizer.name_or_path}' has no chat template, and the prompts are messages. "
                "Fix: use a chat model, set tokenizer.chat_template, or give plain 'prompt' strings"
            )
        try:
            text: str = self._rendered(self._forms(messages), generate=generate, tools=tools)
            return text
        except ModelError:
            raise
        except Exception as error:  # a template is a program: it raises whatever its author wrote
            roles = ", ".join(m["role"] for m in messages)
            name = f"the chat template of '{self.tokenizer.name_or_path}'"
            if isinstance(error, TemplateSyntaxError | ArithmeticError | RecursionError | MemoryError | OverflowError):
                fault = f"{type(error).__name__}: {error}".removesuffix(": ")
                raise ModelError(f"{name} is broken ({fault}). Fix: correct it, or take another tokenizer") from error
            raise ModelError(
                f"{name} refuses messages of the roles {roles} ({error}). Fix: {fix or _FIXES['system' in roles]}"
            ) from error


_FIXES = {
    True: "put the text of the system message into the first user message",
    False: "correct the roles and their order in 'messages'",
}
"""What to do about a refused conversation, by whether it has a system message."""


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """The longest beginning of both."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return tuple(token for token, _ in pairs)
