"""Views: what the teacher reads before the student's own tokens."""

from typing import Annotated

from pydantic import SerializeAsAny

from opd.axes.base import axis
from opd.axes.views.base import GivenView, ViewConfig
from opd.axes.views.context import Context
from opd.axes.views.feedback import Feedback
from opd.axes.views.hint import Hint
from opd.axes.views.plain import Plain
from opd.axes.views.privileged import Privileged

ViewChoice = Annotated[
    SerializeAsAny[ViewConfig], axis(ViewConfig, Plain, Privileged, Context, Feedback, Hint, GivenView)
]

__all__ = ["Plain", "ViewChoice", "ViewConfig"]
