"""Rows of a tensor that are not here yet. Suffix: T rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Later:
    """Selected rows of some tensors end to end, each of which a server sends by itself.

    Attributes:
        parts: each waits for its tensor and returns it.
        sizes: rows of each part.
        rows_T: int64 [T], which of all rows, on the CPU.
        empty: a tensor of the right dtype, device and width, with no rows.
    """

    parts: Sequence[Callable[[], Tensor]]
    sizes: Sequence[int]
    rows_T: Tensor
    empty: Tensor

    def __len__(self) -> int:
        return len(self.rows_T)

    def __getitem__(self, rows: Tensor) -> Later:
        """Fewer rows, by indices or by a mask."""
        return replace(self, rows_T=self.rows_T[rows.cpu()])

    def to(self, device: torch.device) -> Later:
        """The same rows, on another device once they are here."""
        return replace(self, empty=self.empty.to(device))

    def wait(self) -> Tensor:
        """The rows, once every part that has one of them is here."""
        ends = torch.tensor(self.sizes, dtype=torch.int64).cumsum(0)
        part_T = torch.searchsorted(ends, self.rows_T, right=True)
        found = self.empty.new_empty(len(self.rows_T), *self.empty.shape[1:])
        for part in part_T.unique().tolist():
            chosen = (part_T == part).nonzero()[:, 0]
            tensor = self.parts[part]()
            rows = tensor[self.rows_T[chosen] - (ends[part] - self.sizes[part])]
            found[chosen.to(found.device)] = rows.to(found)
        return found
