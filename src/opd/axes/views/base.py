"""The base classes of views: how the teacher sees a rollout."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from opd.axes.base import AxisValue
from opd.axes.context import RunContext
from opd.axes.fields import formats_a_field
from opd.errors import ConfigError
from opd.models.messages import content_text
from opd.types import Prompt, Rollout, Segment, Span, View

if TYPE_CHECKING:
    from opd.models.chat import Chat


class ViewConfig(AxisValue):
    """A view; ``build`` makes the object that turns rollouts into segments."""

    axis = "teacher.view"
    partial: ClassVar[bool] = False
    """Whether it covers parts of rollouts only; the anchor then covers the rest, otherwise everything."""
    compares: ClassVar[bool] = False
    """Whether it compares attempts at one prompt."""
    alone: ClassVar[bool] = False
    """Whether what the teacher reads of a rollout depends on no other rollout, so that it can be sent at once."""
    report: ClassVar[str] = "with a view of its own"
    """How the teacher sees the rollouts, for the report."""
    if_empty: ClassVar[str] = "no token got a target with a weight. Fix: check teacher.view and loss.token_weights"
    """The likely reason why a whole run has no target, and what to change."""
    where: ClassVar[str] = ""
    """Which tokens get the signal, for the map; empty for all of them."""

    @property
    def sends_requests(self) -> bool:
        """Whether each use sends requests to a server."""
        return False

    def build(self, run: RunContext) -> View:
        """The view."""
        raise NotImplementedError


class GivenView(ViewConfig):
    """A ``View`` that was given to ``opd.train``."""

    type: Literal["given from Python"] = "given from Python"

    def build(self, run: RunContext) -> View:
        """The view as it was given."""
        view: View = run.given("view")
        return view


class PromptView(ABC):
    """The teacher reads another prompt, and then exactly the student's own tokens.

    Args:
        chat: renders the teacher's prompt.
    """

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    @abstractmethod
    def prompts(self, rollouts: Sequence[Rollout]) -> list[Prompt | None]:
        """The teacher's prompt for each rollout; None leaves the rollout without a signal."""

    def shown(self, prompt: Prompt, template: str, **fields: str) -> Prompt:
        """``rewritten`` with fields that can open no turn: models, servers and environments have written them."""
        return rewritten(prompt, template, **{name: self.chat.harmless.text(text) for name, text in fields.items()})

    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        """One segment for each rollout with a prompt: that prompt, and the whole completion."""
        return [
            whole(index, self.chat.prompt_ids(prompt), rollouts[index])
            for index, prompt in enumerate(self.prompts(rollouts))
            if prompt is not None
        ]


def whole(index: int, context_ids: tuple[int, ...], rollout: Rollout) -> Segment:
    """A rollout's whole completion after some context."""
    return Segment(index, context_ids, Span(0, len(rollout.completion_ids)))


def rewritten(prompt: Prompt, template: str, **fields: str) -> Prompt:
    """A prompt whose last user message, or whose text, is the filled template; without one it is the last message.

    Raises:
        ConfigError: the template names another field; a brace that is none is written twice.
    """
    if prompt.messages is None:
        return replace(prompt, text=_formatted(template, prompt=prompt.text or "", **fields))
    messages = list(prompt.messages)
    at = max((n for n, message in enumerate(messages) if message["role"] == "user"), default=len(messages) - 1)
    messages[at] = {**messages[at], "content": _formatted(template, prompt=content_text(messages[at]), **fields)}
    return replace(prompt, messages=tuple(messages))


def _formatted(template: str, **fields: str) -> str:
    try:
        return template.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"teacher.view: {template!r} has a field that is not known ({error}). Fix: use only "
            f"{' and '.join(f'{{{name}}}' for name in fields)}, and write other braces twice"
        ) from None


FIELD = re.compile(r"\{(\w+)\}")
"""A field of a context."""


def filled(text: str, data: Any) -> str:
    """``{name}`` replaced by the prompt's entry of that name; any other brace stays as it is."""
    return FIELD.sub(lambda m: str(data[m[1]]) if m[1] in data else m[0], text)


def checked_template(template: str, key: str, *, needs: str, may: str = "") -> str:
    """A template that has the field it needs, and no unknown one.

    Raises:
        ConfigError: a field is missing or unknown; the sentence names the key.
    """
    known = [needs, *may.split()]
    try:
        if formats_a_field(template):
            raise ConfigError(
                f"teacher.view.{key}: {template!r} formats a field. Fix: write fields as {{field}} only, and other "
                "braces twice"
            )
        text = template.format(**{name: "\0" if name == needs else "" for name in known})
    except (KeyError, IndexError, ValueError) as error:
        listed = " and ".join(f"{{{name}}}" for name in known)
        raise ConfigError(
            f"teacher.view.{key}: {template!r} has an unknown field ({error}). Fix: use only {listed}"
        ) from None
    if "\0" not in text:
        raise ConfigError(f"teacher.view.{key}: {template!r} lacks {{{needs}}}. Fix: add it")
    return template
