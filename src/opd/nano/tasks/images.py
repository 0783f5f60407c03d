"""Prompts for small images, and two judges of what an image shows.

    red circle, three blue dots, digit seven, zorp circle

The splits differ in order and ids, not in texts: there are 36 shapes, 30 counts, 10 digits and 6 prompts of the
concept. Images of one prompt differ by their noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from opd.errors import ConfigError
from opd.types import Prompt

if TYPE_CHECKING:
    from torch import Tensor

MIXED = ("shapes", "count", "digits")
DOMAINS = (*MIXED, "concept")
SPLITS = {"train": 512, "val": 128, "test": 256}
"""Number of prompts of a domain in each split; a split without a domain alternates the first three."""
PREFIX = "pictures"
"""Of every prompt's id. Ids seed the noise, so another prefix would change every recorded run."""
SEED = 20_260_101
"""Seed of the real images for the Fréchet distance."""


class Images:
    """An ``ImageTask`` on the images of ``opd.nano.images``.

    A split is ``train``, ``val`` or ``test`` of three domains in turn, or of one domain, as in ``shapes/test``. The 12
    prompts of ``concept/train`` have an image each.
    """

    def prompts(self, split: str) -> Sequence[Prompt]:
        """All prompts of a split; every text of a domain occurs equally often.

        Raises:
            ConfigError: there is no such split.
        """
        domain, _, name = split.rpartition("/")
        if name not in SPLITS or domain not in ("", *DOMAINS):
            raise ConfigError(
                f"the task 'images' has no split '{split}'. Fix: give {', '.join(SPLITS)}, or one of a domain such as "
                f"{DOMAINS[0]}/test; domains are {', '.join(DOMAINS)}"
            )
        if split == "concept/train":
            return _examples()
        if domain:
            return _of_domain(domain, name)
        return tuple(p for row in zip(*(_of_domain(d, name) for d in MIXED), strict=True) for p in row)

    def right(self, images_BX: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """1 if an image shows everything that its prompt names, else 0; by the evaluation judge."""
        from opd.nano.images.judge import load_judge

        return load_judge("judge").right(images_BX, prompts)

    def reward(self, images_BX: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """The same as a probability, by the reward judge of another seed; gradients flow to the images."""
        from opd.nano.images.judge import load_judge

        return load_judge("reward").log_likelihood(images_BX, prompts).exp()

    def distance(self, images_BX: Tensor, prompts: Sequence[Prompt]) -> float:
        """Fréchet distance to real images of the same prompts, in features of the evaluation judge; not an FID."""
        from opd.nano.images.judge import frechet, load_judge
        from opd.nano.images.world import draw

        judge = load_judge("judge")
        return frechet(judge.features(images_BX), judge.features(draw(prompts, SEED, half="judge")))


def _examples() -> tuple[Prompt, ...]:
    from opd.nano.images.world import concept_examples

    prompts, images = concept_examples()
    return tuple(
        replace(prompt, id=f"{PREFIX}/concept/train/{i}", data={**prompt.data, "image": image})
        for i, (prompt, image) in enumerate(zip(prompts, images, strict=True))
    )


def _of_domain(domain: str, split: str) -> tuple[Prompt, ...]:
    from opd.nano.images.world import all_prompts, balanced

    seed = list(SPLITS).index(split)
    chosen = balanced(all_prompts(domain), SPLITS[split], seed)
    return tuple(replace(prompt, id=f"{PREFIX}/{domain}/{split}/{i}") for i, prompt in enumerate(chosen))
