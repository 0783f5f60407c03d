"""The random states of torch in a checkpoint: those of each rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def name_of(name: str, rank: int) -> str:
    """The name of a rank's random state; rank 0 has those of a single process."""
    return name if rank == 0 else f"{name}.{rank}"


def named(ranks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The states of all ranks under one name each."""
    return {name_of(name, rank): state for rank, states in enumerate(ranks) for name, state in states.items()}


def of_this_rank() -> dict[str, Tensor]:
    """The random state of torch on the CPU, and on each GPU that is in use."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states |= {f"cuda{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def put_back(states: Mapping[str, Tensor], rank: int) -> None:
    """Put back a rank's random states; those of GPUs that this machine lacks are left out.

    A rank that was not there when they were saved keeps its own.
    """
    if states["torch"].shape != torch.get_rng_state().shape:
        raise ValueError("'rng.safetensors' has no random state of torch")
    if (own := states.get(name_of("torch", rank))) is not None:
        torch.set_rng_state(own)
    for number in range(torch.cuda.device_count()):
        if (own := states.get(name_of(f"cuda{number}", rank))) is not None:
            torch.cuda.set_rng_state(own, number)
