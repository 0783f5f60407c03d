"""A teacher of hidden states, and the bridge to one of another width.

Suffixes: T positions, K layers, D student's hidden units, E teacher's, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opd.losses.hidden import Projection
from opd.models.forward import states_of
from opd.models.language import LanguageModel
from opd.signals import HiddenSignal
from opd.types import Rollout, Segment


class HiddenTeacher:
    """Gives the hidden states of chosen layers.

    Args:
        language_model: what reads.
        layers: blocks, from 1.
        projection: onto what the student can resemble; None where both have the same width.
        max_tokens: most tokens per forward pass, padding included.

    Source: OPRD, arXiv 2606.06021.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        layers: Sequence[int],
        *,
        projection: Projection | None = None,
        max_tokens: int = 16_384,
    ) -> None:
        self.language_model = language_model
        self.layers = layers
        self.projection = projection
        self.max_tokens = max_tokens

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> HiddenSignal:
        """A target for every student-chosen position of every segment, detached."""
        where, states = states_of(
            self.language_model, rollouts, segments, max_tokens=self.max_tokens, layers=self.layers
        )
        states = states.arrived() if self.projection else states
        assert states.layers_TKD is not None
        target_TKR = self.projection(states.layers_TKD) if self.projection else states.layers_TKD
        return HiddenSignal(where.rollout_T, where.position_T, where.token_T, target_TKR)


def matching_layers(layers: Sequence[int], student_layers: int, teacher_layers: int) -> list[int]:
    """The teacher's block at the same relative depth: round((l − 1) / (L_S − 1) · (L_T − 1)) + 1."""
    return [round((layer - 1) / max(student_layers - 1, 1) * (teacher_layers - 1)) + 1 for layer in layers]


def fit_bridge(student_TKD: Tensor, teacher_TKE: Tensor, rank: int) -> tuple[Projection, Projection]:
    """Two projections into one space: the teacher's leading directions, and what predicts them from the student.

    The teacher's are the principal components of its states. The student's solve the least squares that the source's
    linear layer is trained towards; both then stay frozen, so that the student has to move its states, not the bridge.

    Args:
        student_TKD, teacher_TKE: states of both at the same positions, matching layers side by side; T > D.
        rank: dimensions of the common space, at most D and E.

    Returns:
        The student's projection and the teacher's.

    Source: OPRD-Bridge, arXiv 2606.06021.
    """
    teacher = _principal(teacher_TKE.double(), rank)
    target_KTR = teacher(teacher_TKE.double()).transpose(0, 1)
    mean_KD = student_TKD.double().mean(0)
    centred_KTD = (student_TKD.double() - mean_KD).transpose(0, 1)
    basis_KDR = torch.linalg.lstsq(centred_KTD, target_KTR).solution
    return Projection(mean_KD, basis_KDR), teacher


def _principal(states_TKE: Tensor, rank: int) -> Projection:
    mean_KE = states_TKE.mean(0)
    centred_KTE = (states_TKE - mean_KE).transpose(0, 1)
    _, vectors_KEE = torch.linalg.eigh(centred_KTE.transpose(1, 2) @ centred_KTE)
    return Projection(mean_KE, vectors_KEE[:, :, -rank:].flip(-1))
