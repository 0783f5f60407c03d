"""Teachers that give one number per token: a log-probability of the sampled token, or an advantage from rewards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opd.axes.views.plain import PlainView
from opd.losses import group_advantage, linear_divergence, overlong_penalty, token_logprobs
from opd.models.forward import sort_key
from opd.signals import AdvantageSignal, FullSignal, SampledSignal, TeachersSignal
from opd.teachers.by_domain import TeachersByDomain
from opd.teachers.local import Answers, LocalTeacher, Once
from opd.types import Rollout, Segment, Signal


class SampledTeacher:
    """Reduces a full-vocabulary teacher to the log-probability of the sampled token.

    With a reference it is extrapolated: scale · log q(y) + (1 − scale) · log ref(y). A scale above 1 goes beyond the
    teacher, away from what it was before its own training.

    Args:
        teacher: gives whole distributions.
        reference: scores the rollout after the student's own prompt; None leaves the teacher as it is.
        student: the live student, for a baseline: each position's own mean log-ratio, −KL(student‖teacher), which
            takes variance from the advantage and leaves its mean gradient. Costs a forward pass. None for no baseline.
        scale: of the reward log q − log ref.
        arithmetic: for several teachers, average their probabilities; otherwise their log-probabilities, which is the
            mean of their losses and, except for a constant at each position, also the geometric mean.
        temperature: divides the logits.

    Source: Thinking Machines, On-Policy Distillation (2025); the scale, G-OPD, arXiv 2602.12125; the
    baseline, vOPD, arXiv 2605.07865.
    """

    def __init__(
        self,
        teacher: LocalTeacher | Once | TeachersByDomain,
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
        """One scoring pass of the teacher over every segment, and one of the reference if there is one."""
        signal = self.teacher.score(rollouts, segments).arrived()
        logprobs_T = self._logprobs(signal)
        if self.reference is not None:
            base_T = _token_logprobs(_as_the_student_reads(self.reference, rollouts, signal), self.temperature)
            logprobs_T = torch.lerp(base_T, logprobs_T, self.scale)
        return SampledSignal(
            signal.rollout_T,
            signal.position_T,
            signal.token_T,
            logprobs_T,
            rollout_logprobs(rollouts, signal).to(logprobs_T),
            self._baseline(rollouts, signal),
        )

    def _logprobs(self, signal: FullSignal | TeachersSignal) -> Tensor:
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

    def _baseline(self, rollouts: Sequence[Rollout], teacher: FullSignal | TeachersSignal) -> Tensor:
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


class GroupAdvantages:
    """Gives each token of a rollout the rollout's advantage: its reward relative to its prompt's other rollouts.

    Rollouts of a group with equal rewards have an advantage of 0, and count in the mean unless
    ``drop_zero_variance_groups``; a batch of such groups alone gets no signal.

    Args:
        normalize_std: divide by the group's standard deviation.
        drop_zero_variance_groups: leave those groups out.
        mask_truncated: leave out rollouts that were cut off; their rewards count in their groups.
        overlong_penalty: number of tokens before ``longest`` over which the reward falls; None for no penalty.
        longest: tokens at which a rollout is cut off.

    Source: GRPO, arXiv 2402.03300; without the division, Dr. GRPO, arXiv 2503.20783; the other three, DAPO, arXiv
    2503.14476, which draws other prompts in place of those that ``drop_zero_variance_groups`` leaves out.
    """

    def __init__(
        self,
        *,
        normalize_std: bool = True,
        drop_zero_variance_groups: bool = False,
        mask_truncated: bool = False,
        overlong_penalty: int | None = None,
        longest: int = 0,
    ) -> None:
        self.normalize_std = normalize_std
        self.drop_zero_variance_groups = drop_zero_variance_groups
        self.mask_truncated = mask_truncated
        self.overlong_penalty = overlong_penalty
        self.longest = longest

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> AdvantageSignal:
        """An advantage for every student-chosen position of every segment; a rollout without a reward has none."""
        segments = [s for s in segments if rollouts[s.rollout].reward is not None]
        signal, group_B = Answers().score(rollouts, segments), _groups(rollouts, segments)
        reward_B = torch.tensor([0.0 if r.reward is None else r.reward for r in rollouts])
        if self.overlong_penalty is not None:
            length_B = torch.tensor([len(r.completion_ids) for r in rollouts])
            reward_B = reward_B + overlong_penalty(length_B, longest=self.longest, margin=self.overlong_penalty)
        advantage_B = group_advantage(reward_B, group_B, normalize_std=self.normalize_std)
        whole = AdvantageSignal(
            signal.rollout_T,
            signal.position_T,
            signal.token_T,
            advantage_B[signal.rollout_T],
            rollout_logprobs(rollouts, signal),
        )
        return whole.take(self._counts(rollouts, group_B, advantage_B)[signal.rollout_T])

    def _counts(self, rollouts: Sequence[Rollout], group_B: Tensor, advantage_B: Tensor) -> Tensor:
        """Mask of the rollouts that count in the mean, bool [B]; all False if every advantage is 0."""
        ended_B = torch.tensor([r.finish == "stop" or not self.mask_truncated for r in rollouts])
        size_G = torch.zeros(int(group_B.max()) + 1).index_add_(0, group_B, advantage_B.abs() * ended_B)
        teaches_B = size_G[group_B] > 0
        return ended_B & (teaches_B if self.drop_zero_variance_groups else teaches_B.any())


def _groups(rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> Tensor:
    """The number of each rollout's prompt, from 0, int64 [B].

    Those not asked about, and those without a reward, have a group each: they would change the mean that the others
    are compared with.
    """
    numbers = {prompt: n for n, prompt in enumerate(dict.fromkeys(r.prompt.id for r in rollouts))}
    asked = {segment.rollout for segment in segments}
    return torch.tensor([numbers[r.prompt.id] if i in asked else len(numbers) + i for i, r in enumerate(rollouts)])


def _as_the_student_reads(reader: LocalTeacher, rollouts: Sequence[Rollout], where: Signal) -> FullSignal:
    """A model's signal at the same positions, after the student's own prompt."""
    there = set(where.rollout_T.tolist())
    own = reader.score(rollouts, [s for s in PlainView().segments(rollouts) if s.rollout in there])
    return own.take(torch.isin(sort_key(own), sort_key(where)))


def _token_logprobs(signal: FullSignal, temperature: float) -> Tensor:
    return token_logprobs(signal.hidden_TD, signal.head_VD.to(signal.hidden_TD.dtype), signal.token_T, temperature)


def rollout_logprobs(rollouts: Sequence[Rollout], signal: Signal) -> Tensor:
    """The log-probability that each token of a signal was sampled with, float32 [T], nats."""
    where = zip(signal.rollout_T.tolist(), signal.position_T.tolist(), strict=True)
    return torch.tensor([rollouts[rollout].logprobs[position] for rollout, position in where], dtype=torch.float32)
