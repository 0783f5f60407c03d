"""A copy of a run's state in the machine's memory, from which a checkpoint is written while the run goes on."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from opd.models.weights import buffers
from opd.training.state import RunState


@dataclass(frozen=True)
class Kept:
    """The tensors of a part of the run, as they were."""

    there: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """Those tensors."""
        return self.there

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Never: a run is restored into its own parts."""
        raise NotImplementedError


def snapshot(run: RunState) -> RunState:
    """Everything of a run that training changes, copied; weights that do not train are the same tensors."""
    parts = {
        name: None if part is None else Kept({key: _copied(tensor) for key, tensor in part.tensors().items()})
        for name, part in run.parts.items()
    }
    return replace(run, model=_snapshot_of(run.model), state=copy.deepcopy(run.state), parts=parts)


def _snapshot_of(model: nn.Module) -> nn.Module:
    there: dict[int, Any] = {id(p): nn.Parameter(_copied(p)) if p.requires_grad else p for p in model.parameters()}
    there |= {id(buffer): buffer for buffer in model.buffers()}
    there |= {id(buffer): _copied(buffer) for buffer in buffers(model).values()}
    return copy.deepcopy(model, there)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
