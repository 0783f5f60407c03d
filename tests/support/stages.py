"""Stages of a pipeline without a process each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opd.errors import OpdError
from opd.pipelines import worker


class InProcess:
    """Stands in for ``opd.pipelines.process.Worker``: does its job here, when it is first asked how far it is."""

    def __init__(self, job: Mapping[str, Any], log: Path) -> None:
        self.job = job

    def answer(self) -> str:
        """Empty, or why it failed."""
        try:
            worker._do(self.job)
        except OpdError as error:
            return str(error)
        return ""

    def stop(self) -> None: ...
