"""Sums by whether a column carries: where none does, a teacher that forgets carries is right, and else it never is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

from opd.engines.hf import HFEngine
from opd.models.chat import Chat
from opd.models.language import LanguageModel, stop_ids
from opd.models.loading import load
from opd.nano.tasks import math as additions
from opd.nano.tasks.math import MathTask
from opd.nano.traces import without_carry
from opd.rollouts.sampler import Sampler
from opd.types import Prompt, Sampling

CARRY, PLAIN = "carry", "plain"
SIZES = {"train": 2048, "test": 128}


class Sums(MathTask):
    """The task ``math`` with as many sums that carry as sums that do not, in turn.

    A split is ``train``, or ``test`` with a seed behind it, as in ``test/3``: other prompts for each seed, and none of
    them in ``train``.
    """

    domains: tuple[str, ...] = (CARRY, PLAIN)

    def prompts(self, split: str) -> Sequence[Prompt]:
        return _drawn(self.domains, split)


@cache
def _drawn(domains: tuple[str, ...], split: str) -> tuple[Prompt, ...]:
    rng, name = random.Random(split), split.split("/")[0]
    made: list[Prompt] = []
    while len(made) < SIZES[name]:
        a, b = additions.draw(rng)
        working = additions.working(a, b)
        domain = PLAIN if without_carry(a, b) == working else CARRY
        wanted = domains[len(made) % len(domains)] if domains else domain
        held_out = (a + b) % 8 == 0
        if domain == wanted and held_out == (name == "test"):
            made.append(
                Prompt(
                    id=f"sums/{split}/{len(made)}",
                    messages=({"role": "user", "content": additions.question(a, b)},),
                    answer=working,
                    domain=domain if domains else "math",
                    data={"a": a, "b": b, "result": a + b},
                )
            )
    return tuple(made)


class Drawn(Sums):
    """As ``math`` draws them, one sum of five without a carry, and nobody says which: one domain."""

    domains = ()


class Carries(Sums):
    domains = (CARRY,)


class Plain(Sums):
    domains = (PLAIN,)


def greedy(source: str, split: str) -> dict[str, float]:
    """A model's greedy accuracy on both domains, and the share of sums that carry answered as if they did not."""
    model: LanguageModel = load(source, key="student")
    engine = HFEngine(model)
    sampler = Sampler(
        engine,
        Chat(model.tokenizer),
        Sums(),
        sampling=Sampling(temperature=0),
        stop_ids=stop_ids(model),
        max_new_tokens=64,
    )
    found: dict[str, list[float]] = {"accuracy": [], CARRY: [], PLAIN: [], "forgotten": []}
    for rollout in sampler.rollout(Sums().prompts(split), seed=0):
        domain, reward = rollout.prompt.domain, rollout.reward or 0.0
        found["accuracy"].append(reward)
        found[domain].append(reward)
        if domain == CARRY:
            wrong = without_carry(rollout.prompt.data["a"], rollout.prompt.data["b"]).rsplit("answer ", 1)[1]
            said = rollout.transcript[-1]["content"].rsplit("answer", 1)[-1].split("<|")[0]
            found["forgotten"].append(float("".join(said.split()) == wrong))
    return {name: sum(values) / len(values) for name, values in found.items()}
