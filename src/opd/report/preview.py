"""The preview: prompts that the report rolls out at every evaluation, and the rollouts it selects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opd.types import Prompt, Rollout, RolloutSource


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Prompts that the report rolls out at every evaluation.

    Attributes:
        prompts: each repeated ``repeats`` times in a row, for views and rewards that compare attempts.
        sampler: generates rollouts as in training.
        scores: whether the loss can score them at any time without requests to a server.
        number: number of training rollouts to record per evaluation.
        foreign: the teacher's tokenizer if it differs from the student's.
        layers: blocks of the student whose hidden states the loss needs.
    """

    prompts: Sequence[Prompt]
    sampler: RolloutSource
    repeats: int
    scores: bool
    number: int
    foreign: Any = None
    layers: Sequence[int] = ()


def spaced_prompts(prompts: Sequence[Prompt], number: int) -> list[Prompt]:
    """A few prompts, alternating between domains and evenly spaced within each."""
    domains: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        domains.setdefault(prompt.domain, []).append(prompt)
    share = -(-number // max(len(domains), 1))
    spaced = [own[:: max(len(own) // share, 1)][:share] for own in domains.values()]
    return [own[k] for k in range(share) for own in spaced if k < len(own)][:number]


def varied_rollouts(rollouts: Sequence[Rollout], number: int) -> list[int]:
    """Indices of a few rollouts that differ in domain, reward, ending and kinds of events."""
    kinds: dict[Any, list[int]] = {}
    for i, rollout in enumerate(rollouts):
        seen = frozenset(event.kind for event in rollout.events)
        kinds.setdefault((rollout.prompt.domain, rollout.reward, rollout.finish, seen), []).append(i)
    deepest = max(map(len, kinds.values()), default=0)
    return sorted([own[k] for k in range(deepest) for own in kinds.values() if k < len(own)][:number])
