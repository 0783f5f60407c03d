"""Metrics of rollouts that need no model."""

from __future__ import annotations

import pytest

from opd.evaluation.metrics import summarise
from opd.types import Event, Prompt, Rollout, Span


def rollout(*events: Event, num_calls: int) -> Rollout:
    prompt = Prompt(id="p", text="x")
    return Rollout(prompt, (1,), (2,), (True,), (-1.0,), (Span(0, 1),), "stop", events=events, num_calls=num_calls)


def test_invalid_calls_are_events_with_a_tool_whatever_their_kind() -> None:
    invalid = Event("missing_argument", 0, Span(0, 1), {"tool": "search"})
    nameless = Event("bad_arguments", 0, Span(0, 1), {"tool": ""})
    other = Event("too_long", 0, Span(0, 1), {"limit": "9"})
    metrics = summarise([rollout(invalid, other, num_calls=3), rollout(nameless, num_calls=1)])
    assert metrics["invalid_call_rate"] == pytest.approx(2 / 4)
    assert "invalid_call_rate" not in summarise([rollout(other, num_calls=0)])
