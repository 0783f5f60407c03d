"""Hints by a local model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from opd.axes.authors.base import AuthorConfig
from opd.axes.context import RunContext

if TYPE_CHECKING:
    from opd.types import HintAuthor


class Model(AuthorConfig):
    """A model on this machine reads the transcript and answers in a strict format."""

    type: Literal["model"] = "model"
    model: str
    """Path or id."""
    instruction: str | None = None
    """Replaces the model's system message."""
    see_answer: bool = False
    """Show it the prompt's reference answer."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest answer."""

    writes = True

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Answers, if they are shown."""
        return {"see_answer": ("answers",)} if self.see_answer else {}

    def build(self, run: RunContext, key: str) -> HintAuthor:
        """The author, with its model loaded."""
        from opd.teachers.hints import INSTRUCTION, local_author

        critic = run.load_model(self.model, key=f"{key}.model")
        instruction = self.instruction or INSTRUCTION
        return local_author(
            critic, max_new_tokens=self.max_new_tokens, instruction=instruction, see_answer=self.see_answer
        )
