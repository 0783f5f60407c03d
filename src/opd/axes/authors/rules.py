"""Hints by rule, from the environment's events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from opd.axes.authors.base import AuthorConfig
from opd.axes.context import RunContext

if TYPE_CHECKING:
    from opd.types import HintAuthor


class Rules(AuthorConfig):
    """A template for every kind of event."""

    type: Literal["rules"] = "rules"
    templates: dict[str, str] = Field(default_factory=dict)
    """A template per kind of event, with the event's fields in braces; added to the shipped ones."""
    span: Literal["turn", "fault"] = "turn"
    """What gets a signal: the whole faulty turn, or the tokens of the fault alone, such as the wrong tool's name."""

    def build(self, run: RunContext, key: str) -> HintAuthor:
        """The author."""
        from opd.teachers.hints import RulesAuthor

        return RulesAuthor(self.templates, span=self.span)
