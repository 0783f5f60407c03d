"""The shape of the lines that the page reads; a line of another shape costs that line. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Scores(_Part):
    logprob: list[float]
    entropy: list[float] | None = None
    top: list[list[str]] | None = None
    top_logprob: list[list[float]] | None = None
    row: list[int] | None = None
    before: list[float] | None = None

    def check(self, size: int) -> None:
        rows = range(size) if self.row is None else self.row
        _check(all(0 <= row < size for row in rows))
        for column in (self.logprob, self.entropy, self.top, self.top_logprob, self.before):
            _check(column is None or len(column) == len(rows))
        _check(self.top is None or [*map(len, self.top)] == [*map(len, self.top_logprob or [])])


class _Context(_Part):
    span: tuple[int, int] | list[int]
    at: int | None = None
    read: str
    instead_of: str


class _Term(_Part):
    name: str
    role: str
    factor: float
    count: int
    position: list[int]
    weight: list[float]
    loss: list[float]
    advantage: list[float] | None = None
    teachers: list[_Scores]
    contexts: list[_Context]


class _Event(_Part):
    kind: str
    span: list[int]
    detail: dict[str, Any] = {}


class _Rollout(_Part):
    step: int
    of: Literal["eval", "train"]
    n: int
    prompt: str
    domain: str
    answer: str | None
    prompt_text: str
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    ids: list[int]
    text: list[str]
    bytes: dict[str, str] = {}
    own: list[int]
    drawn: list[float | None]
    special: list[int]
    missed: list[int] = []
    turns: list[list[int]]
    events: list[_Event]
    reward: float | None
    finish: str | None
    source: str
    student: _Scores
    terms: list[_Term]

    @model_validator(mode="after")
    def _fits(self) -> _Rollout:
        size = len(self.text)
        _check(len(self.ids) == size and all(len(turn) == 2 for turn in self.turns))
        for positions in (self.own, self.special, self.missed, *(term.position for term in self.terms)):
            _check(all(0 <= position < size for position in positions))
        self.student.check(len(self.own))
        for term in self.terms:
            for column in (term.weight, term.loss, term.advantage):
                _check(column is None or len(column) == len(term.position))
            for teacher in term.teachers:
                teacher.check(len(term.position))
        return self


class _Later(_Part):
    """Log-probabilities of an earlier rollout with later weights."""

    step: int
    of: Literal["after", "again"]
    about: tuple[int, str, int] | list[Any]
    logprob: list[float]


class _States(_Part):
    """Losses of a denoising run by term, a mean per denoising step."""

    step: int
    loss: dict[str, list[float | None]]


class _Result(_Part):
    best: dict[str, float | None] = {}
    stopped_by: str | None = None
    seconds: float | None = None
    tokens: int | None = None


class _Happened(_Part):
    kind: str
    text: str


class _Line(_Part):
    step: int
    train: dict[str, float | None] | None = None
    eval: dict[str, float | None] | None = None
    event: _Happened | None = None


def is_rollout(row: Mapping[str, Any]) -> bool:
    """Whether a line of ``rollouts.jsonl`` is as the recorder writes it."""
    return _holds(_Later if row.get("of") in ("after", "again") else _Rollout, row)


def is_metrics(line: Mapping[str, Any]) -> bool:
    """Whether a line of ``metrics.jsonl`` is as the run's log writes it."""
    return _holds(_Line, line)


def is_states(line: Mapping[str, Any]) -> bool:
    """Whether a line of ``states.jsonl`` is as the recorder writes it."""
    return _holds(_States, line)


def is_result(tree: Mapping[str, Any]) -> bool:
    """Whether ``result.json`` is as a run writes it."""
    return _holds(_Result, tree)


def _holds(shape: type[_Part], row: Mapping[str, Any]) -> bool:
    try:
        shape.model_validate(row)
    except ValidationError:
        return False
    return True


def _check(holds: bool) -> None:
    if not holds:
        raise ValueError("columns of a row do not fit together")
