"""Teachers that say one number a token: what another thinks of the sampled token, or what came of the rollout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opd.losses import group_advantage, linear_divergence, token_logprobs
from opd.reading import sort_key
from opd.teachers.experts import Experts
from opd.teachers.local import Answers, LocalTeacher, Once
from opd.teachers.views import PlainView
from opd.types import AdvantageSignal, ExpertsSignal, FullSignal, Rollout, SampledSignal, Segment, Signal


class SampledTeacher:
    """Boils a full-vocabulary teacher down to the log-probability of the token that was drawn.

    With a reference it is extrapolated: scale · log q(y) + (1 − scale) · log ref(y). A scale above 1 goes beyond the
    teacher, away from what it was before its own training.

    Args:
        teacher: gives whole distributions.
        reference: reads the rollout as the student did; None leaves the teacher as it is.
        student: the live student, for a baseline: each position's own mean log-ratio, −KL(student‖teacher), which
            takes variance from the advantage and leaves its mean gradient. Costs a forward pass. None for no baseline.
        scale: of the reward log q − log ref.
        arithmetic: where several teachers speak, mix their probabilities; otherwise their log-probabilities, which is
            the mean of their losses and, but for a constant at each position, the geometric mean as well.
        temperature: divides the logits.

    Source: Thinking Machines, On-Policy Distillation (2025); the scale, G-OPD, arXiv 2602.12125; the
    baseline, vOPD, arXiv 2605.07865.
    """

    def __init__(
        self,
        teacher: LocalTeacher | Once | Experts,
        *,
        reference: LocalTeacher | None = None,
        student: LocalTeacher | None = None,
        scale: float = 1.0,
        arithmetic: bool = False,
        temperature: float = 1.0,
    ) -> None:
        self.arithmetic = arithmetic
        self.teacher = teacher
        self.reference = reference
        self.student = student
        self.scale = scale
        self.temperature = temperature

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> SampledSignal:
        """Every segment is read once by the teacher, and once by the reference where there is one."""
        signal = self.teacher.score(rollouts, segments)
        logprobs_T = self._logprobs(signal)
        if self.reference is not None:
            base_T = _token_logprobs(_as_the_student_reads(self.reference, rollouts, signal), self.temperature)
            logprobs_T = torch.lerp(base_T, logprobs_T, self.scale)
        return SampledSignal(
            signal.rollout_T,
            signal.position_T,
            signal.token_T,
            logprobs_T,
            _rollout_logprobs(rollouts, signal).to(logprobs_T),
            self._baseline(rollouts, signal),
        )

    def _logprobs(self, signal: FullSignal | ExpertsSignal) -> Tensor:
        """The teacher's, or those of several in one, float32 [T]."""
        if isinstance(signal, FullSignal):
            return _token_logprobs(signal, self.temperature)
        each_TK = torch.zeros_like(signal.share_TK)
        for k in range(len(signal.parts)):
            rows = (signal.row_TK[:, k] >= 0).nonzero()[:, 0]
            each_TK[rows, k] = _token_logprobs(signal.part(k, rows), self.temperature).to(each_TK)
        if self.arithmetic:
            return (each_TK + signal.share_TK.log()).logsumexp(-1)
        return (signal.share_TK * each_TK).sum(-1)

    def _baseline(self, rollouts: Sequence[Rollout], teacher: FullSignal | ExpertsSignal) -> Tensor:
        if self.student is None:
            return torch.zeros(len(teacher), device=teacher.token_T.device)
        assert isinstance(teacher, FullSignal)
        own = _as_the_student_reads(self.student, rollouts, teacher)
        divergence_T = torch.empty(len(teacher), device=teacher.hidden_TD.device)
        with torch.no_grad():
            linear_divergence(
                own.hidden_TD,
                own.head_VD.to(own.hidden_TD.dtype),
                teacher.hidden_TD,
                teacher.head_VD.to(teacher.hidden_TD.dtype),
                weight=torch.ones_like(divergence_T),
                divergence="reverse_kl",
                temperature=self.temperature,
                vocab_size=min(len(own.head_VD), len(teacher.head_VD)),
                per_token=divergence_T,
            )
        return -divergence_T


class Outcome:
    """The rollout's reward, compared with those of the other rollouts of the same prompt, for each of its tokens.

    Rollouts of a group in which all did equally well have an advantage of 0, and count in the mean; a batch that has
    nothing but such groups gets no signal.

    Args:
        by_deviation: divide by the group's standard deviation.

    Source: GRPO, arXiv 2402.03300; without the division, Dr. GRPO, arXiv 2503.20783.
    """

    def __init__(self, *, by_deviation: bool = True) -> None:
        self.by_deviation = by_deviation

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> AdvantageSignal:
        """An advantage for every student-chosen position of every segment; a rollout without a reward counts as 0."""
        signal = Answers().score(rollouts, segments)
        numbers = {prompt: n for n, prompt in enumerate(dict.fromkeys(r.prompt.id for r in rollouts))}
        group_B = torch.tensor([numbers[r.prompt.id] for r in rollouts], dtype=torch.int64)
        # Those not asked about are in no group: they would lower the mean that the others are compared with.
        asked = {segment.rollout for segment in segments}
        left_out_B = torch.tensor([i not in asked for i in range(len(rollouts))])
        group_B = torch.where(left_out_B, len(numbers) + torch.arange(len(rollouts)), group_B)
        reward_B = torch.tensor([r.reward or 0.0 for r in rollouts])
        advantage_T = group_advantage(reward_B, group_B, by_deviation=self.by_deviation)[signal.rollout_T]
        whole = AdvantageSignal(
            signal.rollout_T,
            signal.position_T,
            signal.token_T,
            advantage_T,
            _rollout_logprobs(rollouts, signal),
        )
        # A mean over all tokens, as in the source; but where no group has anything to teach there is no signal.
        return whole if bool(advantage_T.any()) else whole.take(advantage_T != 0)


def _as_the_student_reads(reader: LocalTeacher, rollouts: Sequence[Rollout], where: Signal) -> FullSignal:
    """What a model thinks of the same positions, read in the student's own context."""
    own = reader.score(rollouts, PlainView().segments(rollouts))
    return own.take(torch.isin(sort_key(own), sort_key(where)))


def _token_logprobs(signal: FullSignal, temperature: float) -> Tensor:
    return token_logprobs(signal.hidden_TD, signal.head_VD.to(signal.hidden_TD.dtype), signal.token_T, temperature)


def _rollout_logprobs(rollouts: Sequence[Rollout], signal: Signal) -> Tensor:
    where = zip(signal.rollout_T.tolist(), signal.position_T.tolist(), strict=True)
    return torch.tensor([rollouts[rollout].logprobs[position] for rollout, position in where], dtype=torch.float32)
