"""Which prompts a step trains on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from opd.errors import DataError
from opd.types import Prompt


class Uniform:
    """Every prompt once per epoch, each epoch in another order.

    A pure function of the step, so a resumed run continues the order without any stored state.

    Args:
        prompts: at least one batch of them.
        batch: prompts per step.
        samples: rollouts per prompt; repeats stand next to each other.
        seed: of the order.

    Raises:
        DataError: fewer prompts than a batch.
    """

    def __init__(self, prompts: Sequence[Prompt], *, batch: int, samples: int, seed: int) -> None:
        if len(prompts) < batch:
            raise DataError(
                f"prompts: there are {len(prompts)} prompts, fewer than one batch (rollout.batch={batch}); "
                "add prompts or lower rollout.batch"
            )
        self.prompts = prompts
        self.batch = batch
        self.samples = samples
        self.order = lru_cache(maxsize=2)(self._order)
        self.seed = seed

    def step(self, step: int) -> list[Prompt]:
        """The prompts of one step, ``batch * samples`` of them."""
        chosen = []
        for k in range(step * self.batch, (step + 1) * self.batch):
            epoch, position = divmod(k, len(self.prompts))
            chosen += [self.prompts[self.order(epoch)[position]]] * self.samples
        return chosen

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(len(self.prompts), generator=generator).tolist()
        return order
