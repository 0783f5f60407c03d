"""Context distillation: the teacher's prompt contains a text that the student should internalise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from opd.axes.authors import AuthorChoice, AuthorConfig, Rules
from opd.axes.context import RunContext
from opd.axes.views.base import FIELD, PromptView, ViewConfig, checked_template, filled
from opd.config.base import Strict, exactly_one
from opd.errors import DataError
from opd.models.messages import content_text
from opd.types import Prompt, Rollout

if TYPE_CHECKING:
    from opd.models.chat import Chat

TEMPLATE = "{context}\n\n{prompt}"

CONTEXT_FILE = "context.txt"
"""In the run's folder: the context that the teacher read; a resumed run reads it back."""


class ExperienceConfig(Strict):
    """A context gathered before the first step from the student's own mistakes (OPCD)."""

    author: AuthorChoice = Rules()
    """Finds the mistakes in rollouts: rules, a local model, or a chat endpoint. A rule's template may leave a field of
    the prompt open, as ``{{listing}}``."""
    prompts: int = Field(256, ge=1)
    """Number of training prompts that the student rolls out."""
    items: int = Field(8, ge=1)
    """Most items to keep, most frequent first."""
    consolidate: bool = False
    """Let the author, a model, rewrite all items into ``items``; otherwise equal items count as one."""

    @model_validator(mode="after")
    def _can_write(self) -> ExperienceConfig:
        if self.consolidate and not self.author.writes:
            raise ValueError(
                f"consolidate needs an author that is a model (author={self.author.type}). Fix: set "
                "author={type: model, …} or {type: http, …}"
            )
        return self


class Context(ViewConfig):
    """A text in the teacher's prompt (OPCD, arXiv 2602.12275). Exactly one of text, file and experience."""

    type: Literal["context"] = "context"
    text: str | None = Field(None, min_length=1)
    """The context; ``{name}`` is filled from the prompt's own entry of that name."""
    file: str | None = None
    """A file that holds the context."""
    experience: ExperienceConfig | None = None
    """Gather the context from the student's own rollouts."""
    template: str = TEMPLATE
    """The teacher's prompt, with {context}, and {prompt} if wanted. Not with ``role``."""
    role: str | None = None
    """Chat role of a message of its own that holds the context; ``system`` comes first."""

    alone = True
    report = "with a context that the student does not have"

    @model_validator(mode="after")
    def _one_source(self) -> Context:
        exactly_one(self, "text", "file", "experience")
        return self

    def needs(self) -> dict[str, tuple[str, ...]]:
        """A teacher pass."""
        return {"": ("teacher pass",)}

    def words(self) -> str:
        """The view's cell in the map."""
        return "context (experience)" if self.experience else "context"

    def build(self, run: RunContext) -> ContextView:
        """The view; experience is gathered now unless the run's folder has it.

        Raises:
            DataError: the context cannot be read, or some prompts lack an entry that it is filled from.
        """
        text = run.once("context", lambda: self._text(run))
        if not self.experience:
            check_entries(text, [*run.prompts, *run.held_out], note=run.notes.append)
        return ContextView(run.chat, text, template=self.template, role=self.role)

    def _text(self, run: RunContext) -> str:
        if self.text is not None:
            return self.text.strip()
        gathered = Path(run.config.out) / CONTEXT_FILE
        if run.world.first(gathered.exists, "teacher.view.experience"):
            return gathered.read_text(encoding="utf-8").strip()
        if self.experience:
            from opd.teachers.experience import gather_experience

            author = run.author(self.experience.author, key="teacher.view.experience.author")
            rollouts = run.first_rollouts(self.experience.prompts)
            settings = self.experience
            gather = partial(gather_experience, items=settings.items, consolidate=settings.consolidate)
            text: str = run.world.first(lambda: gather(rollouts, author), "teacher.view.experience")
            return text
        path = Path(self.file or "").expanduser()
        if path.exists() and not path.is_file():
            raise DataError(f"teacher.view.file: '{path}' is no file. Fix: give a text file")
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"teacher.view.file: cannot read '{path}': {error}. Fix: give a text file") from None
        if not text:
            raise DataError(f"teacher.view.file: '{path}' is empty. Fix: give a file with text")
        return text


def check_entries(context: str, prompts: Sequence[Prompt], note: Callable[[str], None]) -> None:
    """Check that prompts have the entries ``{name}`` of a context; a name that no prompt has is text, which is noted.

    Raises:
        DataError: some prompts have an entry, and others lack it.
    """
    for name in dict.fromkeys(FIELD.findall(context)):
        lacking = [prompt.id for prompt in prompts if name not in prompt.data]
        if len(lacking) == len(prompts):
            note(f"teacher.view: {{{name}}} is a column of no prompt, and stays in the context as it is")
        elif lacking:
            raise DataError(
                f"teacher.view: the context is filled from '{name}', and prompt '{lacking[0]}' has no such column. "
                "Fix: add it to every row"
            )


class ContextView(PromptView):
    """The teacher's prompt holds the context.

    Args:
        chat: renders the teacher's prompt.
        context: the text; ``{name}`` in it is filled from ``Prompt.data``.
        template: replaces the last message; has {context}, and may have {prompt}.
        role: put the context into a message of its own instead, in this chat role: ``system`` comes first (before the
            text of an existing system message), any other right before the first turn.

    Raises:
        ConfigError: the template lacks a field or has an unknown one.
        DataError: ``role`` is given and a prompt is no chat.
    """

    def __init__(self, chat: Chat, context: str, *, template: str = TEMPLATE, role: str | None = None) -> None:
        super().__init__(chat)
        self.context = context
        self.template = checked_template(template, "template", needs="context", may="prompt")
        self.role = role

    def prompts(self, rollouts: Sequence[Rollout]) -> list[Prompt | None]:
        """Each rollout's prompt in the context."""
        return [self.seen(rollout.prompt) for rollout in rollouts]

    def seen(self, prompt: Prompt) -> Prompt:
        """The prompt as the teacher sees it."""
        context = self.chat.harmless.text(filled(self.context, prompt.data))
        if self.role is None:
            return self.shown(prompt, self.template, context=context)
        if prompt.messages is None:
            raise DataError(f"teacher.view.role={self.role}: prompt '{prompt.id}' has no messages. Fix: use template")
        if self.role == "system":
            first, rest = prompt.messages[0], prompt.messages[1:]
            if first["role"] != "system":
                return replace(prompt, messages=({"role": "system", "content": context}, *prompt.messages))
            merged = {**first, "content": f"{context}\n\n{content_text(first)}"}
            return replace(prompt, messages=(merged, *rest))
        return replace(prompt, messages=(*prompt.messages, {"role": self.role, "content": context}))


__all__ = ["AuthorConfig", "Context", "ContextView"]
