"""Which rollouts the report looks at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opd.parts import Parts, sampler_of
from opd.rollouts.sampler import Sampler
from opd.terms import layers_of
from opd.types import Prompt, Rollout, Sampling


@dataclass(frozen=True, kw_only=True)
class Look:
    """The prompts that are rolled out again and again.

    Attributes:
        prompts: each ``repeats`` times in a row, where a view or a reward compares attempts.
        sampler: rolls out as in training.
        teaches: whether teachers can score them at any time and without a request to somebody.
        number: of training rollouts to keep beside them.
        foreign: the teacher's tokenizer, where it is another.
        layers: the student's blocks whose states the loss is about.
    """

    prompts: Sequence[Prompt]
    sampler: Sampler
    repeats: int
    teaches: bool
    number: int
    foreign: Any = None
    layers: Sequence[int] = ()


def look_of(parts: Parts) -> Look:
    """A handful of held-out prompts, or without any of those to train on."""
    config, rollout = parts.config, parts.config.rollout
    assert config.report
    hint, loss = config.teacher.view.hint, config.loss
    compares = config.teacher.view.feedback or loss.outcome or loss.signal == "reward"
    repeats = rollout.samples if compares else 1
    chosen = handful(parts.held_out or parts.prompts, config.report.prompts)
    sampling = Sampling(temperature=rollout.temperature, top_p=rollout.top_p, top_k=rollout.top_k)
    sampler = dataclasses.replace(sampler_of(parts, sampling, held_out=bool(parts.held_out)), grow_every=None)
    asks = hint is not None and hint.author.kind == "http"
    return Look(
        prompts=[p for p in chosen for _ in range(repeats)],
        sampler=sampler,
        repeats=repeats,
        teaches=not (asks or rollout.offline or loss.signal == "tokens"),
        number=config.report.prompts,
        foreign=parts.teacher.tokenizer if parts.teacher and loss.signal == "cross" else None,
        layers=layers_of(parts),
    )


def handful(prompts: Sequence[Prompt], number: int) -> list[Prompt]:
    """A few prompts, of every domain in turn, evenly spaced among its own."""
    domains: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        domains.setdefault(prompt.domain, []).append(prompt)
    share = -(-number // max(len(domains), 1))
    spaced = [own[:: max(len(own) // share, 1)][:share] for own in domains.values()]
    return [own[k] for k in range(share) for own in spaced if k < len(own)][:number]


def telling(rollouts: Sequence[Rollout], number: int) -> list[int]:
    """A few rollouts, as different as can be seen without a model: by domain, reward, ending and kind of event."""
    kinds: dict[Any, list[int]] = {}
    for i, rollout in enumerate(rollouts):
        seen = frozenset(event.kind for event in rollout.events)
        kinds.setdefault((rollout.prompt.domain, rollout.reward, rollout.finish, seen), []).append(i)
    deepest = max(map(len, kinds.values()), default=0)
    return sorted([own[k] for k in range(deepest) for own in kinds.values() if k < len(own)][:number])
