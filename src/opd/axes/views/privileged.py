"""The teacher reads the reference answer in its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from opd.axes.context import RunContext
from opd.axes.views.base import PromptView, ViewConfig, checked_template
from opd.errors import DataError
from opd.types import Prompt, Rollout

if TYPE_CHECKING:
    from opd.models.chat import Chat

TEMPLATE = (
    "{prompt}\n\nA correct solution, for your eyes only:\n{answer}\n\n"
    "Now solve the problem yourself, in your own words and step by step."
)


class Privileged(ViewConfig):
    """The reference answer in the teacher's prompt (OPSD, arXiv 2601.18734; SDFT, arXiv 2601.19897)."""

    type: Literal["privileged"] = "privileged"
    template: str = TEMPLATE
    """The teacher's prompt, with {answer}, and {prompt} if wanted."""

    alone = True
    report = "with the reference answer in the prompt"

    def needs(self) -> dict[str, tuple[str, ...]]:
        """A reference answer to every prompt, and a teacher pass."""
        return {"": ("teacher pass", "answers")}

    def build(self, run: RunContext) -> PrivilegedView:
        """The view."""
        return PrivilegedView(run.chat, template=self.template)


class PrivilegedView(PromptView):
    """The teacher's prompt holds the answer.

    Args:
        chat: renders the teacher's prompt.
        template: replaces the last message; has {answer}, and may have {prompt}.

    Raises:
        ConfigError: the template lacks a field or has an unknown one.
    """

    def __init__(self, chat: Chat, *, template: str = TEMPLATE) -> None:
        super().__init__(chat)
        self.template = checked_template(template, "template", needs="answer", may="prompt")

    def prompts(self, rollouts: Sequence[Rollout]) -> list[Prompt | None]:
        """Each rollout's prompt with its answer.

        Raises:
            DataError: a prompt has no answer.
        """
        return [self.seen(rollout.prompt) for rollout in rollouts]

    def seen(self, prompt: Prompt) -> Prompt:
        """The prompt as the teacher sees it."""
        if prompt.answer is None:
            raise DataError(
                f"prompt '{prompt.id}' has no answer, and teacher.view=privileged needs one. Fix: give the prompt an "
                "'answer', or set another teacher.view"
            )
        return self.shown(prompt, self.template, answer=prompt.answer)
