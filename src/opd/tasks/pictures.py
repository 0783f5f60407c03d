"""Pictures to be drawn from a prompt, and a judge that says what they show.

    red circle, three blue dots, digit seven, zorp circle

The splits differ in order and ids, not in what they ask: there are 36 shapes, 30 counts, 10 digits and 6 prompts of
the concept, and it is the noise that makes pictures of one prompt differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from opd.errors import ConfigError
from opd.types import Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from opd.nano.pictures.judge import Judge

MIXED = ("shapes", "count", "digits")
DOMAINS = (*MIXED, "concept", "mixed")
SPLITS = {"train": 512, "val": 128, "test": 256}
"""Prompts a domain has in each split; ``mixed`` has those of its three domains."""


class Pictures:
    """See the module's docstring.

    Args:
        domain: ``shapes``, ``count``, ``digits``, ``concept``, or ``mixed`` for the first three in turn.
    """

    def __init__(self, domain: str = "mixed") -> None:
        if domain not in DOMAINS:
            raise ConfigError(f"Unknown domain of pictures {domain!r}: use one of {', '.join(DOMAINS)}.")
        self.domain = domain

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The prompts of ``train``, ``val`` or ``test``, every text of a domain equally often."""
        if split not in SPLITS:
            raise ConfigError(f"The task 'pictures' has no split {split!r}: use one of {', '.join(SPLITS)}.")
        if self.domain != "mixed":
            return _of_domain(self.domain, split)
        return tuple(p for row in zip(*(_of_domain(d, split) for d in MIXED), strict=True) for p in row)

    @property
    def judge(self) -> Judge:
        """Who measures: frozen, on the CPU."""
        return _judge("judge")

    @property
    def reward(self) -> Judge:
        """Who rewards: of the same kind, from another seed, so that the judge stays impartial."""
        return _judge("reward")

    def real(self, prompts: Sequence[Prompt], seed: int) -> Tensor:
        """Pictures as the world has them, [B, 3, 16, 16] float32 in [-1, 1]; the same seed draws the same ones."""
        from opd.nano.pictures.world import draw

        return draw(prompts, seed)

    def examples(self) -> tuple[Sequence[Prompt], Tensor]:
        """The concept's handful: 12 prompts, and a picture of each."""
        from opd.nano.pictures.world import concept_examples

        return concept_examples()


def _judge(name: str) -> Judge:
    from opd.nano.pictures.judge import load_judge

    return load_judge(name)


def _of_domain(domain: str, split: str) -> tuple[Prompt, ...]:
    from opd.nano.pictures.world import all_prompts, balanced

    seed = list(SPLITS).index(split)
    chosen = balanced(all_prompts(domain), SPLITS[split], seed)
    return tuple(replace(prompt, id=f"pictures/{domain}/{split}/{i}") for i, prompt in enumerate(chosen))
