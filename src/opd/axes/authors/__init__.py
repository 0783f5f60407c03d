"""Hint authors: what reads a rollout, finds the mistake and writes a hint."""

from typing import Annotated

from pydantic import SerializeAsAny

from opd.axes.authors.base import AuthorConfig, GivenAuthor
from opd.axes.authors.http import Http
from opd.axes.authors.model import Model
from opd.axes.authors.rules import Rules
from opd.axes.base import axis

AuthorChoice = Annotated[SerializeAsAny[AuthorConfig], axis(AuthorConfig, Rules, Model, Http, GivenAuthor)]

__all__ = ["AuthorChoice", "AuthorConfig", "Rules"]
