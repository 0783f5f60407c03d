"""Going further along the update so far, as far as validation allows (EffOPD, arXiv 2605.11739)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from opd.errors import DataError
from opd.evaluation.metrics import Metrics
from opd.training.guards import validation

if TYPE_CHECKING:
    from opd.loop import Loop

STRIDE = 2
"""Candidate k is W + 2kΔ."""


class Extrapolation:
    """After step 2^n, with Δ = W(2^n) − W(2^(n−1)), tries W + 2kΔ for k = 1, 2, … and keeps the last that was better.

    The first candidate that validates no better than the one before ends the search; if that is k = 1, the step was an
    ordinary one. Matrices inside the blocks move; embeddings, head, norms and the optimizer's state stay as they are.
    The next Δ counts from the weights that were kept.

    Args:
        model: what trains.
        validate: measures the model as it is; returns figures and the tokens it took.
        candidates: the most k.
    """

    def __init__(self, model: Any, validate: Callable[[], tuple[Metrics, int]], *, candidates: int) -> None:
        outer = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
        self.named: dict[str, Tensor] = {
            name: p for name, p in model.named_parameters() if p.ndim > 1 and id(p) not in outer
        }
        self.validate = validate
        self.candidates = candidates
        self.previous = self._copy()

    def __call__(self, loop: Loop) -> None:
        """Try, if the run has just made step 2^n; what validation costs counts as the run's.

        Raises:
            DataError: validation says nothing.
        """
        step = loop.state.step
        if step & (step - 1):
            return
        start, kept = self._copy(), 0
        at_start = best = self._validate(loop)
        judged = validation(at_start)
        if judged is None:
            raise DataError(
                "optimizer.extrapolate: none of the training prompts drawn for validation got a reward; give prompts "
                "with answers, or leave it out"
            )
        for k in range(1, self.candidates + 1):
            self._move(start, STRIDE * k)
            seen = self._validate(loop)
            if not loop.guards.better(seen, best):
                break
            kept, best = k, seen
        self._move(start, STRIDE * kept)
        self.previous = self._copy()
        name, found = judged[0], f"W + {STRIDE * kept}Δ" if kept else "W"
        loop.event("extrapolation", f"kept {found}; validation {name} is {best[name]:.3f}, of W {at_start[name]:.3f}")

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back ``previous`` from a checkpoint."""
        self.previous = {name: tensors[name].to(p.device) for name, p in self.named.items()}

    def _validate(self, loop: Loop) -> Metrics:
        metrics, tokens = self.validate()
        loop.state.tokens += tokens
        return metrics

    @torch.no_grad()
    def _move(self, start: dict[str, Tensor], factor: int) -> None:
        """W + factor · Δ; exactly W where the factor is 0."""
        for name, parameter in self.named.items():
            parameter.copy_(start[name] + factor * (start[name] - self.previous[name]))

    def _copy(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.named.items()}
