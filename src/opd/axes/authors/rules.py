"""Hints by rule, from the environment's events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from opd.axes.authors.base import AuthorConfig
from opd.axes.context import RunContext
from opd.axes.fields import formats_a_field

if TYPE_CHECKING:
    from opd.types import HintAuthor


class Rules(AuthorConfig):
    """A template for every kind of event."""

    type: Literal["rules"] = "rules"
    templates: dict[str, str | None] = Field(default_factory=dict)
    """A template per kind of event, with the event's fields in braces; added to the shipped ones. ``null`` for no hint
    about this kind of event."""
    span: Literal["turn", "fault", "token"] = "turn"
    """What gets a signal: the whole faulty turn, the tokens of the fault alone, such as the wrong tool's name, or its
    first token: after a wrong token the teacher, too, continues the mistake."""

    @field_validator("templates")
    @classmethod
    def _plain_fields(cls, templates: dict[str, str | None]) -> dict[str, str | None]:
        """Only ``{field}``."""
        for kind, template in templates.items():
            try:
                formats = formats_a_field(template or "")
            except ValueError as error:
                raise ValueError(
                    f"the template of {kind} is broken ({error}). Fix: write fields as {{field}}"
                ) from None
            if formats:
                raise ValueError(f"the template of {kind} formats a field. Fix: write fields as {{field}} only")
        return templates

    def build(self, run: RunContext, key: str) -> HintAuthor:
        """The author."""
        from opd.teachers.hints import RulesAuthor

        return RulesAuthor(self.templates, span=self.span)
