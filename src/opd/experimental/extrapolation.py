"""Extrapolation: further along the latest update for as long as validation improves (EffOPD, arXiv 2605.11739)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opd.errors import DataError
from opd.models.weights import load_into, trained
from opd.training.guards import better, validation
from opd.types import Metrics

STRIDE = 2
"""Candidate k is W + 2kΔ."""


@dataclass(frozen=True)
class Extrapolated:
    """The result of one search.

    Attributes:
        text: which weights were kept, and their validation.
        tokens: student tokens generated to compare the candidates.
    """

    text: str
    tokens: int


class Extrapolation:
    """After step 2^n, with Δ = W(2^n) − W(2^(n−1)), tries W + 2kΔ for k = 1, 2, … and keeps the last improvement.

    The search ends at the first candidate that does not improve on the one before; if that is k = 1, the weights stay
    as the optimizer left them. Matrices inside the blocks move; embeddings, head, norms and the optimizer's state do
    not. The next Δ starts at the weights that were kept.

    Args:
        model: the student.
        validate: measures the model; returns metrics and the number of tokens generated.
        candidates: the largest k.
    """

    def __init__(self, model: Any, validate: Callable[[], tuple[Metrics, int]], *, candidates: int) -> None:
        outer = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
        self.named: dict[str, Tensor] = {
            name: p for name, p in trained(model).items() if p.ndim > 1 and id(p) not in outer
        }
        self.validate = validate
        self.candidates = candidates
        self.previous = self._copy()

    def __call__(self, step: int) -> Extrapolated | None:
        """Search after step 2^n; None after any other step.

        Raises:
            DataError: no metric of the validation can judge.
        """
        if step & (step - 1):
            return None
        start, kept = self._copy(), 0
        at_start, tokens = self.validate()
        best, judged = at_start, validation(at_start)
        if judged is None:
            raise DataError(
                "experimental.extrapolate: none of the training prompts drawn for validation got a reward. Fix: give "
                "prompts with answers, or leave it out"
            )
        for k in range(1, self.candidates + 1):
            self._move(start, STRIDE * k)
            seen, more = self.validate()
            tokens += more
            if not better(seen, best):
                break
            kept, best = k, seen
        self._move(start, STRIDE * kept)
        self.previous = self._copy()
        name, found = judged[0], f"W + {STRIDE * kept}Δ" if kept else "W"
        text = f"kept {found}; validation {name} is {best[name]:.3f}, of W {at_start[name]:.3f}"
        return Extrapolated(text, tokens)

    def tensors(self) -> dict[str, Tensor]:
        """The weights that the next Δ starts at, for a checkpoint."""
        return self.previous

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what ``tensors`` returned."""
        load_into(self.previous, tensors)

    @torch.no_grad()
    def _move(self, start: dict[str, Tensor], factor: int) -> None:
        """W + factor · Δ; exactly W for the factor 0."""
        for name, parameter in self.named.items():
            parameter.copy_(start[name] + factor * (start[name] - self.previous[name]))

    def _copy(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.named.items()}
