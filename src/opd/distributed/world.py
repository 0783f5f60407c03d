"""The processes that share a run, as the loop and its parts see them. This one is a single process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from opd.types import HintAuthor, Rollout, RolloutSource, Scored, Segment, Signal, Term


class World:
    """The ranks of a run. This one is a single process: all of the work is its own."""

    rank = 0
    size = 1

    def own(self, rollouts: Sequence[Rollout]) -> Collection[int]:
        """Indices of the rollouts whose tokens this rank reads."""
        return range(len(rollouts))

    def score(self, term: Term, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> Signal:
        """The term's signal about this rank's rollouts."""
        return term.teacher.score(rollouts, segments)

    def shared(self, source: RolloutSource, *models: nn.Module) -> RolloutSource:
        """A source whose prompts are divided among the ranks; every rank gets the rollouts of all.

        Args:
            models: that generate; their weights are gathered meanwhile.
        """
        return source

    def authors(self, author: HintAuthor) -> HintAuthor:
        """A hint author whose rollouts are divided among the ranks; every rank gets the hints of all."""
        return author

    def gather(self, value: Any, what: str) -> list[Any]:
        """The value of every rank, by rank.

        Args:
            what: of the exchange, for the sentence about a rank that does not take part.
        """
        return [value]

    def first(self, make: Callable[[], Any], what: str) -> Any:
        """What ``make`` returns on rank 0; no other rank calls it."""
        return make()

    def rows(self, values: Tensor) -> Tensor:
        """The rows of all ranks, [N, ...], by rank."""
        return values

    def total(self, value: Tensor) -> Tensor:
        """The sum over ranks."""
        return value

    def sums(self, values: dict[str, float]) -> dict[str, float]:
        """The sum over ranks of each value."""
        return values

    def losses(self, scored: Scored) -> tuple[Signal, Tensor]:
        """The positions of the whole batch with a term's loss there, ordered."""
        return scored.signal, scored.loss_T

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add the gradients of all ranks."""

    def weights(self, model: nn.Module) -> dict[str, Tensor] | None:
        """The whole weights of a model on rank 0, in memory of the CPU; None if they are not divided."""
        return None

    def write(self, save: Callable[[dict[str, Tensor], Path], None], tensors: dict[str, Tensor], path: Path) -> None:
        """Let rank 0 write a safetensors file of whole tensors; ``save`` writes what is not divided."""
        save(tensors, path)

    def all(self, here: bool) -> bool:
        """Whether it is so on every rank."""
        return here

    def save(self, write: Callable[..., None], model: nn.Module, folder: Path) -> None:
        """Let rank 0 write a model; ``write`` gets the whole weights as ``state`` if they are divided."""
        write(folder)

    def together(self) -> AbstractContextManager[None]:
        """Stop all ranks with one sentence if one of them stops."""
        return nullcontext()
