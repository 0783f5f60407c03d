"""The distance between hidden states, and a projection of them. Suffixes: T positions, K layers, D units, R rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from opd.errors import OpdError


@dataclass(frozen=True, slots=True)
class Projection:
    """(states − mean) @ basis, layer by layer; frozen.

    Attributes:
        mean_KD: [K, D]. basis_KDR: [K, D, R].
    """

    mean_KD: Tensor
    basis_KDR: Tensor

    def __call__(self, states_TKD: Tensor) -> Tensor:
        """[T, K, R]; gradients flow to the states."""
        return torch.einsum("tkd,kdr->tkr", states_TKD - self.mean_KD.to(states_TKD), self.basis_KDR.to(states_TKD))


def hidden_distance(
    student_TKD: Tensor,
    teacher_TKD: Tensor,
    *,
    weight: Tensor,
    normalise: bool = False,
    per_token: Tensor | None = None,
) -> Tensor:
    """Σ_t w_t (1/K) Σ_k ‖h_tk − h'_tk‖² / D: the weighted sum of mean squared differences.

    The output head gets no gradient: how states are read out stays as it was.

    Args:
        student_TKD: [T, K, D]; gradient flows.
        teacher_TKD: [T, K, D], detached.
        weight: [T] finite and ≥ 0, detached.
        normalise: to length 1 first, so that directions count alone; the loss is then small, at most 4/D a position.
        per_token: float32 [T], overwritten with each position's distance; for logging, detached.

    Returns:
        float32 [].

    Raises:
        OpdError: the shapes differ.

    Source: OPRD, arXiv 2606.06021. Proof: tests/fidelity/test_hidden.py.
    """
    if student_TKD.shape != teacher_TKD.shape:
        raise OpdError(
            f"student states {tuple(student_TKD.shape)} and teacher states {tuple(teacher_TKD.shape)} differ in shape; "
            "models of another width or depth need a bridge"
        )
    ours, theirs = student_TKD.float(), teacher_TKD.detach().float()
    if normalise:
        ours, theirs = normalize(ours, dim=-1), normalize(theirs, dim=-1)
    distance_T = (ours - theirs).square().mean((1, 2))
    if per_token is not None:
        per_token.copy_(distance_T.detach())
    return distance_T @ weight.float()
