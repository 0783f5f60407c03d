"""Metrics of a set of rollouts, computed without a model."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from opd.types import Metrics, Prompt, Rollout

REPETITION_CHARACTERS, REPETITION_FACTOR = 10_000, 10
"""Length of the text's end that is compressed, and the compression ratio above which it counts as repetition."""


JUDGE = "judge"
"""Name of a judge among ``Rollout.rewards``; of several, with a number after it."""


def summarise(rollouts: Sequence[Rollout]) -> Metrics:
    """Means over rollouts; a metric without data is absent.

    Returns:
        ``accuracy``: share of right answers among those that were judged right or wrong; ``accuracy/DOMAIN`` too if
        there are several domains.
        ``reward``: mean reward, if it is more than 1 for right and 0 for wrong; ``reward/DOMAIN`` likewise.
        ``rewards/NAME``: mean of each of several reward functions. ``judge/unparsable``: share of answers whose verdict
        could not be read.
        ``equal_groups``: among prompts with several checked answers, the share whose answers all have the same reward.
        A group-relative advantage is 0 there (DAPO, arXiv 2503.14476).
        ``invalid_call_rate``: invalid tool calls over all tool calls. An event with a ``tool`` in its detail marks an
        invalid call.
        ``length``: mean number of student tokens. ``truncation_rate``: share cut off at the token or turn limit.
        ``repetition_rate``: share whose last 10,000 characters zlib compresses more than tenfold (arXiv 2604.08527).
    """
    metrics = {**_accuracy(rollouts), **_rewards(rollouts)}
    groups: dict[str, list[float]] = {}
    for rollout in rollouts:
        if rollout.reward is not None:
            groups.setdefault(rollout.prompt.id, []).append(rollout.reward)
    equal = [float(len(set(rewards)) == 1) for rewards in groups.values() if len(rewards) > 1]
    metrics |= {"equal_groups": _mean(equal)} if equal else {}
    calls = sum(r.num_calls for r in rollouts)
    if calls:
        invalid = sum("tool" in event.detail for r in rollouts for event in r.events)
        metrics["invalid_call_rate"] = invalid / calls
    metrics["length"] = _mean([float(r.num_tokens) for r in rollouts])
    metrics["truncation_rate"] = _mean([float(r.finish != "stop") for r in rollouts])
    answers = ["".join(m["content"] for m in r.transcript if m["role"] == "assistant") for r in rollouts]
    if texts := [text for text in answers if text]:
        metrics["repetition_rate"] = _mean([float(repeats(text)) for text in texts])
    return metrics


def _accuracy(rollouts: Sequence[Rollout]) -> Metrics:
    """``accuracy``; a rollout that was cut off before its task said right or wrong counts as wrong."""
    if all(r.correct is None for r in rollouts):
        return {}
    judged = [r for r in rollouts if r.correct is not None or (r.finish != "stop" and r.reward is not None)]
    return by_domain("accuracy", [r.prompt for r in judged], [float(r.correct or False) for r in judged])


def _rewards(rollouts: Sequence[Rollout]) -> Metrics:
    """``reward``, the mean of each of several rewards, and the share of unparsable verdicts."""
    if not any(r.rewards for r in rollouts):
        return {}
    rewarded = [(r.prompt, r.reward) for r in rollouts if r.reward is not None]
    metrics = by_domain("reward", [prompt for prompt, _ in rewarded], [reward for _, reward in rewarded])
    names = list(dict.fromkeys(name for r in rollouts for name in r.rewards))
    for name in names:
        given = [r.rewards[name] for r in rollouts if name in r.rewards]
        known = [value for value in given if value is not None]
        if len(names) > 1 and known:
            metrics[f"rewards/{name}"] = _mean(known)
        if name.startswith(JUDGE):
            metrics[f"{name}/unparsable"] = 1 - len(known) / len(given)
    return metrics


def by_domain(name: str, prompts: Sequence[Prompt], values: Sequence[float]) -> Metrics:
    """The mean of one value per prompt, and each domain's mean if there are several; empty without values."""
    if not values:
        return {}
    metrics = {name: _mean(values)}
    domains = sorted({prompt.domain for prompt in prompts})
    for domain in domains if len(domains) > 1 else []:
        own = [value for prompt, value in zip(prompts, values, strict=True) if prompt.domain == domain]
        metrics[f"{name}/{domain}"] = _mean(own)
    return metrics


def entropy(rollouts: Sequence[Rollout]) -> float:
    """Estimate of the student's entropy: mean −log p over its sampled tokens, nats."""
    drawn = [logprob for r in rollouts for logprob, own in zip(r.logprobs, r.completion_mask, strict=True) if own]
    return -_mean(drawn)


def describe(rollouts: Sequence[Rollout]) -> Metrics:
    """Metrics of a training step's rollouts: ``summarise`` and ``entropy``."""
    return summarise(rollouts) | {"entropy": entropy(rollouts)}


def repeats(text: str) -> bool:
    """Whether the end of a text repeats itself: zlib compresses it more than tenfold."""
    end = text[-REPETITION_CHARACTERS:].encode()
    return len(end) > REPETITION_FACTOR * len(zlib.compress(end))


def gap_recovery(before: Metrics, now: Metrics) -> Metrics:
    """``gap_recovery``: share of the initial accuracy gap to the teacher that is closed.

    Empty if an accuracy was not measured, or if the teacher's was no better than the student's at the start: a student
    that came closer to such a teacher has recovered nothing.
    Source: arXiv 2604.13016.
    """
    measured = "accuracy" in before and {"accuracy", "teacher_accuracy"} <= now.keys()
    if not measured or now["teacher_accuracy"] <= before["accuracy"]:
        return {}
    return {"gap_recovery": (now["accuracy"] - before["accuracy"]) / (now["teacher_accuracy"] - before["accuracy"])}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
