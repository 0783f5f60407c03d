"""Figures of a set of rollouts."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from opd.types import Metrics, Prompt, Rollout

INVALID_CALLS = frozenset({"unknown_tool", "bad_arguments"})
"""Kinds of event that make a tool call invalid."""

REPETITION_CHARACTERS, REPETITION_FACTOR = 10_000, 10
"""How much of a text's end is looked at, and how much smaller it has to get to count as repetition."""


def summarise(rollouts: Sequence[Rollout]) -> Metrics:
    """What can be said about rollouts without any model.

    Returns:
        ``accuracy``: mean reward, where answers are checked; ``accuracy/DOMAIN`` where there are several domains.
        ``equal_groups``: share of the prompts with several answers whose answers all have the same reward, where there
        are such prompts: a comparison within the group has nothing to say about them (DAPO, arXiv 2503.14476).
        ``invalid_call_rate``: invalid tool calls over all tool calls, where there are any.
        ``length``: mean tokens the student chose. ``truncation_rate``: share that did not end by itself.
        ``repetition_rate``: share whose last 10,000 characters zlib makes more than ten times smaller
        (arXiv 2604.08527).
    """
    metrics: Metrics = {}
    checked = [r for r in rollouts if r.reward is not None]
    if checked:
        metrics |= by_domain("accuracy", [r.prompt for r in checked], [r.reward or 0.0 for r in checked])
        groups: dict[str, list[float]] = {}
        for rollout in checked:
            groups.setdefault(rollout.prompt.id, []).append(rollout.reward or 0.0)
        equal = [float(len(set(rewards)) == 1) for rewards in groups.values() if len(rewards) > 1]
        metrics |= {"equal_groups": _mean(equal)} if equal else {}
    calls = sum(r.num_calls for r in rollouts)
    if calls:
        invalid = sum(event.kind in INVALID_CALLS for r in rollouts for event in r.events)
        metrics["invalid_call_rate"] = invalid / calls
    metrics["length"] = _mean([float(r.num_tokens) for r in rollouts])
    metrics["truncation_rate"] = _mean([float(r.finish != "stop") for r in rollouts])
    texts = [
        said for r in rollouts if (said := "".join(m["content"] for m in r.transcript if m["role"] == "assistant"))
    ]
    if texts:
        metrics["repetition_rate"] = _mean([float(repeats(text)) for text in texts])
    return metrics


def by_domain(name: str, prompts: Sequence[Prompt], values: Sequence[float]) -> Metrics:
    """The mean of some prompts' values, and where there are several domains that of each; nothing of nothing."""
    if not values:
        return {}
    metrics = {name: _mean(values)}
    domains = sorted({prompt.domain for prompt in prompts})
    for domain in domains if len(domains) > 1 else []:
        own = [value for prompt, value in zip(prompts, values, strict=True) if prompt.domain == domain]
        metrics[f"{name}/{domain}"] = _mean(own)
    return metrics


def entropy(rollouts: Sequence[Rollout]) -> float:
    """Mean of −log p over the tokens that the student drew: an estimate of its entropy that costs nothing, in nats."""
    drawn = [logprob for r in rollouts for logprob, own in zip(r.logprobs, r.completion_mask, strict=True) if own]
    return -_mean(drawn)


def describe(rollouts: Sequence[Rollout]) -> Metrics:
    """What a training step says about the student's own rollouts: ``summarise`` and ``entropy``."""
    return summarise(rollouts) | {"entropy": entropy(rollouts)}


def repeats(text: str) -> bool:
    """Whether the end of a text says the same thing over and over."""
    end = text[-REPETITION_CHARACTERS:].encode()
    return len(end) > REPETITION_FACTOR * len(zlib.compress(end))


def gap_recovery(before: Metrics, now: Metrics) -> Metrics:
    """``gap_recovery``: the share of the way from the start to the teacher that the accuracy has come.

    Empty if an accuracy was not measured, or if the teacher's is the student's at the start. Source: arXiv 2604.13016.
    """
    measured = "accuracy" in before and {"accuracy", "teacher_accuracy"} <= now.keys()
    if not measured or now["teacher_accuracy"] == before["accuracy"]:
        return {}
    return {"gap_recovery": (now["accuracy"] - before["accuracy"]) / (now["teacher_accuracy"] - before["accuracy"])}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
