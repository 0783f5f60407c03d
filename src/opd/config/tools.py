"""``prompts.tools``: an environment in which the student calls functions."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from opd.config.base import Strict


class ToolsConfig(Strict):
    """Function calling with the model's own chat template. A bare string names the functions."""

    functions: str | None = None
    """A list of Python functions as ``package.module:NAME``, which are run. Without it a row's ``tools`` are checked
    against its ``calls`` and run nothing."""
    timeout: float = Field(10.0, gt=0)
    """Seconds for one call; a call that takes longer is ended and answered with an error."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"functions": value} if isinstance(value, str) else value
