"""An engine whose answers are written beforehand."""

from collections.abc import Sequence

from opd.types import Generation, Sampling


class Scripted:
    """Says the same text in every turn and stops with a given token."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        self.ids = ids
        self.contexts: list[Sequence[int]] = []

    def generate(
        self,
        contexts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        *,
        sampling: Sampling,
        stop_ids: frozenset[int],
        seed: int,
    ) -> list[Generation]:
        self.contexts += contexts
        return [Generation(self.ids, (-1.0,) * len(self.ids), self.ids[-1] in stop_ids) for _ in contexts]

    def sync(self) -> None: ...
