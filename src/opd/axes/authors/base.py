"""The base class of hint authors."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from opd.axes.base import AxisValue
from opd.axes.context import RunContext

if TYPE_CHECKING:
    from opd.types import HintAuthor


class AuthorConfig(AxisValue):
    """A hint author; ``build`` makes the object with ``hints(rollouts)``."""

    axis = "teacher.view.author"
    writes: ClassVar[bool] = False
    """Whether it writes text of its own, and can rewrite other text."""
    sends_requests: ClassVar[bool] = False
    """Whether each use sends requests to a server."""

    def build(self, run: RunContext, key: str) -> HintAuthor:
        """The author; ``key`` is its place in the run file, for errors."""
        raise NotImplementedError


class GivenAuthor(AuthorConfig):
    """A ``HintAuthor`` that was given to ``opd.train``."""

    type: Literal["given from Python"] = "given from Python"

    def build(self, run: RunContext, key: str) -> HintAuthor:
        """The author as it was given."""
        author: HintAuthor = run.given("author")
        return author
