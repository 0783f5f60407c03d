"""Which prompts a step trains on.

Suffix: T positions of the main term's signal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from opd.errors import DataError
from opd.types import Metrics, Prompt, Rollout, Signal


class Curriculum(Protocol):
    """Chooses prompts, and may learn from what came of them."""

    def step(self, step: int) -> list[Prompt]:
        """The prompts of one step."""
        ...

    def learn(self, step: int, rollouts: Sequence[Rollout], signal: Signal, loss_T: Tensor) -> Metrics:
        """Note what a step's rollouts, and the main term's loss at each position, say about their prompts."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What it has learned, for a checkpoint; empty if it learns nothing."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``tensors`` gave."""
        ...


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
        check_batch(prompts, batch)
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

    def learn(self, step: int, rollouts: Sequence[Rollout], signal: Signal, loss_T: Tensor) -> Metrics:
        """Nothing."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing."""

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(len(self.prompts), generator=generator).tolist()
        return order


def check_batch(prompts: Sequence[Prompt], batch: int) -> None:
    if len(prompts) < batch:
        raise DataError(
            f"prompts: there are {len(prompts)} prompts, fewer than one batch (rollout.prompts_per_step={batch}). Fix: "
            "add prompts or lower rollout.prompts_per_step"
        )
