"""Figures of a set of rollouts."""

from __future__ import annotations

from collections.abc import Sequence

from opd.types import Rollout

Metrics = dict[str, float]

INVALID_CALLS = frozenset({"unknown_tool", "bad_arguments"})
"""Kinds of event that make a tool call invalid."""


def summarise(rollouts: Sequence[Rollout]) -> Metrics:
    """What can be said about rollouts without any model.

    Returns:
        ``accuracy``: mean reward, where answers are checked; ``accuracy/DOMAIN`` where there are several domains.
        ``invalid_call_rate``: invalid tool calls over all tool calls, where there are any.
        ``length``: mean tokens the student chose. ``truncation_rate``: share that did not end by itself.
    """
    metrics: Metrics = {}
    checked = [r for r in rollouts if r.reward is not None]
    if checked:
        metrics["accuracy"] = _mean([r.reward or 0.0 for r in checked])
        domains = sorted({r.prompt.domain for r in checked})
        for domain in domains if len(domains) > 1 else []:
            metrics[f"accuracy/{domain}"] = _mean([r.reward or 0.0 for r in checked if r.prompt.domain == domain])
    calls = sum(r.num_calls for r in rollouts)
    if calls:
        invalid = sum(event.kind in INVALID_CALLS for r in rollouts for event in r.events)
        metrics["invalid_call_rate"] = invalid / calls
    metrics["length"] = _mean([float(r.num_tokens) for r in rollouts])
    metrics["truncation_rate"] = _mean([float(r.finish != "stop") for r in rollouts])
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
