"""A run of several processes, which torchrun starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opd.distributed.failures import TIMEOUT, WAITS_S, Watch
from opd.distributed.shards import is_divided, part_of, wholes, write_wholes
from opd.distributed.shares import SharedAuthor, SharedSource
from opd.distributed.world import World
from opd.errors import ConfigError
from opd.types import HintAuthor, Rollout, RolloutSource, Scored, Segment, Signal, Term

BUCKET = 2**24
"""Numbers of gradients that are added at a time."""


class Ranks(World):
    """The ranks of a run of several processes, as one of them sees them."""

    def __init__(self, watch: Watch) -> None:
        self.rank = watch.rank
        self.size = watch.size
        self.watch = watch

    def own(self, rollouts: Sequence[Rollout]) -> Collection[int]:
        """Longest first, each rollout goes to the rank with the fewest tokens so far; the same on every rank."""
        lengths = [len(rollout.prompt_ids) + len(rollout.completion_ids) for rollout in rollouts]
        tokens = [0] * self.size
        mine = set()
        for index in sorted(range(len(rollouts)), key=lambda index: -lengths[index]):
            rank = tokens.index(min(tokens))
            tokens[rank] += lengths[index]
            if rank == self.rank:
                mine.add(index)
        return mine

    def score(self, term: Term, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> Signal:
        """Only this rank's rollouts are read; rewards are compared among all of them, which reads nothing."""
        mine = self.own(rollouts)
        asked = segments if term.role == "reward" else [s for s in segments if s.rollout in mine]
        signal = term.teacher.score(rollouts, asked)
        chosen = torch.tensor(sorted(mine), dtype=torch.int64, device=signal.rollout_T.device)
        return signal.take(torch.isin(signal.rollout_T, chosen))

    def shared(self, source: RolloutSource, *models: nn.Module) -> RolloutSource:
        """See ``World.shared``."""
        return SharedSource(source, self, models)

    def authors(self, author: HintAuthor) -> HintAuthor:
        """See ``World.authors``."""
        return SharedAuthor(author, self)

    def gather(self, value: Any, what: str) -> list[Any]:
        """See ``World.gather``; every rank has to call it, as often as the others."""
        from torch import distributed

        self.watch.enter(what)
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def first(self, make: Callable[[], Any], what: str) -> Any:
        """See ``World.first``."""
        return self.gather(make() if self.rank == 0 else None, what)[0]

    def rows(self, values: Tensor) -> Tensor:
        """See ``World.rows``."""
        return torch.cat(self.gather(values.detach().cpu(), "values of single tokens")).to(values.device)

    def total(self, value: Tensor) -> Tensor:
        """See ``World.total``."""
        return self.rows(value[None]).sum(0).to(value.dtype)

    def sums(self, values: dict[str, float]) -> dict[str, float]:
        """See ``World.sums``."""
        found = self.gather(values, "sums of the losses")
        return {name: sum(each[name] for each in found) for name in values}

    def losses(self, scored: Scored) -> tuple[Signal, Tensor]:
        """See ``World.losses``."""
        signal = scored.signal
        place = torch.stack([signal.rollout_T, signal.position_T, signal.token_T], 1)
        rollout_T, position_T, token_T = self.rows(place).unbind(1)
        order_T = (rollout_T * 2**32 + position_T).argsort()
        whole = Signal(rollout_T, position_T, token_T).take(order_T)
        return whole, self.rows(scored.loss_T)[order_T]

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """See ``World.add_gradients``. A parameter without a gradient on any rank keeps none.

        FSDP2 has averaged those of divided weights.
        """
        every = list(parameters)
        for parameter in every:
            if part_of(parameter) is not parameter and parameter.grad is not None:
                parameter.grad *= self.size
        trained = [parameter for parameter in every if part_of(parameter) is parameter]
        there = self.gather([p.grad is not None for p in trained], "gradients")
        for parameter, any_rank in zip(trained, map(any, zip(*there, strict=True)), strict=True):
            if any_rank and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in trained if p.grad is not None]):
            self._add(bucket)

    def _add(self, tensors: Sequence[Tensor]) -> None:
        from torch import distributed

        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def weights(self, model: nn.Module) -> dict[str, Tensor] | None:
        """See ``World.weights``; every rank has to call it."""
        return wholes(model.state_dict(), keep=self.rank == 0) if is_divided(model) else None

    def write(self, save: Callable[[dict[str, Tensor], Path], None], tensors: dict[str, Tensor], path: Path) -> None:
        """See ``World.write``; every rank has to call it."""
        self.watch.enter("checkpoint")
        if any(part_of(tensor) is not tensor for tensor in tensors.values()):
            write_wholes(tensors, path if self.rank == 0 else None)
        elif self.rank == 0:
            save(tensors, path)

    def all(self, here: bool) -> bool:
        """See ``World.all``."""
        return all(self.gather(here, "finite weights"))

    def save(self, write: Callable[..., None], model: nn.Module, folder: Path) -> None:
        """See ``World.save``."""
        state = self.weights(model)
        self.first(lambda: write(folder) if state is None else write(folder, state=state), "saving")

    def together(self) -> AbstractContextManager[None]:
        """See ``World.together``."""
        return self.watch.together(lambda: self.gather(None, "end of the run"))


_joined: Ranks | None = None


def current() -> World:
    """The ranks that this process has joined; a world of one before ``join`` and without torchrun."""
    return _joined or World()


def join(device: str) -> World:
    """Meet the other ranks that torchrun has started, once per process; without torchrun there is one rank.

    Args:
        device: the run's; on GPUs each rank has the one of its number.

    Raises:
        ConfigError: the device is a single GPU's, or the timeout is no number.
    """
    global _joined
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or _joined:
        return current()
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if ":" in device:
        raise ConfigError(
            f"device: torchrun gives each rank a GPU, and '{device}' is one for all. Fix: set device=auto"
        )
    try:
        timeout = float(os.environ.get(TIMEOUT, WAITS_S))
    except ValueError:
        raise ConfigError(f"{TIMEOUT}: '{os.environ[TIMEOUT]}' is no number. Fix: give seconds") from None
    cuda = device == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=min(timeout, 300))))
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout),
    )
    _joined = Ranks(Watch(store, rank, size, timeout))
    return _joined


def check_alone(what: str) -> None:
    """Refuse several processes.

    Raises:
        ConfigError: torchrun has started several.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        raise ConfigError(f"torchrun: {what} takes one process, not {size}. Fix: start it without torchrun")


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, a dtype at a time, about ``BUCKET`` numbers together."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[Tensor] = []
        for tensor in (t for t in tensors if t.dtype == dtype):
            bucket.append(tensor)
            if sum(t.numel() for t in bucket) >= BUCKET:
                yield bucket
                bucket = []
        if bucket:
            yield bucket
