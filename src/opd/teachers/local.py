"""Teachers that are models on this machine: another model, or the student's own weights frozen, averaged or live."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from opd.models.forward import states_of
from opd.models.language import LanguageModel
from opd.signals import FullSignal, TokenSignal
from opd.types import Rollout, Segment


class LocalTeacher:
    """Scores the student's tokens with a model's last hidden states.

    The model is another one, a frozen or averaged copy of the student, or the student itself (live).

    Args:
        language_model: the model that scores.
        max_tokens: most tokens per forward pass, padding included.
    """

    def __init__(self, language_model: LanguageModel, *, max_tokens: int = 16_384) -> None:
        self.language_model = language_model
        self.max_tokens = max_tokens

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> FullSignal:
        """Read every segment once and keep one hidden state per student-chosen token.

        Segments of one rollout that stand in its own history share one forward pass.

        Returns:
            A detached signal, ordered by rollout and position.
        """
        where, states = states_of(self.language_model, rollouts, segments, max_tokens=self.max_tokens)
        head_VD = self.language_model.head_VD.detach()
        return FullSignal(where.rollout_T, where.position_T, where.token_T, states.hidden_TD, head_VD)


class Once:
    """Keeps a teacher's last signal, so that several terms of a step cost one scoring pass.

    Args:
        teacher: makes the pass.
    """

    def __init__(self, teacher: LocalTeacher) -> None:
        self.teacher = teacher
        self.last: tuple[Sequence[Rollout], Sequence[Segment], FullSignal] | None = None

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> FullSignal:
        """The teacher's signal, or that of the last call if rollouts and segments are the same."""
        if self.last is None or self.last[0] is not rollouts or self.last[1] != segments:
            self.last = rollouts, segments, self.teacher.score(rollouts, segments)
        return self.last[2]


class Answers:
    """The teacher of supervised training: the target is the token that stands in the rollout."""

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> TokenSignal:
        """A one-hot target for every student-chosen position of every segment."""
        table = [
            (s.rollout, p, rollouts[s.rollout].completion_ids[p])
            for s in segments
            for p in range(*s.span)
            if rollouts[s.rollout].completion_mask[p]
        ]
        rollout_T, position_T, token_T = torch.tensor(table, dtype=torch.int64).reshape(-1, 3).unbind(1)
        return TokenSignal(rollout_T, position_T, token_T)
