"""Log-probabilities, entropies and likeliest tokens of student and teachers at every position, for the report.

Suffixes: T positions, N positions of a chunk, V vocabulary, K likeliest tokens, D hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opd.evaluation.distributions import logprob_chunks
from opd.signals import CrossSignal, FullSignal, SampledSignal, TeachersSignal, TopKSignal
from opd.teachers.by_domain import TeachersByDomain
from opd.teachers.hidden import HiddenTeacher
from opd.teachers.local import LocalTeacher
from opd.teachers.sampled import SampledTeacher
from opd.types import Rollout, Scored, Signal


@dataclass(frozen=True, slots=True)
class Scores:
    """One model's predictions at some positions, at temperature 1, on the CPU.

    Attributes:
        name: name of the teacher; empty if there is only one.
        position_T: [T] row in the signal.
        logprob_T: [T] log-probability of the student's token, nats.
        entropy_T: [T] nats; None if only the sampled token's log-probability is known.
        top_id_TK, top_logprob_TK: [T, K] the likeliest tokens, best first.
        foreign: whether the ids are of another tokenizer.
    """

    name: str
    position_T: Tensor
    logprob_T: Tensor
    entropy_T: Tensor | None = None
    top_id_TK: Tensor | None = None
    top_logprob_TK: Tensor | None = None
    foreign: bool = False


@torch.no_grad()
def scores_of(hidden_TD: Tensor, head_VD: Tensor, token_T: Tensor, top_k: int, *, name: str = "") -> Scores:
    """The predictions of softmax(hidden · headᵀ), chunk by chunk."""
    position_T, chunks = torch.arange(len(hidden_TD)), []
    if not len(hidden_TD):
        none = torch.zeros(0)
        return Scores(name, position_T, none, none, none[:, None].long(), none[:, None])
    for rows, (log_p_NV,) in logprob_chunks((hidden_TD, head_VD)):
        vocab = log_p_NV.shape[1]
        best = log_p_NV.topk(min(top_k, vocab), dim=-1)
        own_N = log_p_NV.gather(1, token_T[rows, None].clamp_max(vocab - 1))[:, 0]
        chunks.append((own_N, -(log_p_NV.exp() * log_p_NV).sum(-1), best.indices, best.values))
    own_T, entropy_T, id_TK, logprob_TK = (torch.cat([chunk[n] for chunk in chunks]).cpu() for n in range(4))
    return Scores(name, position_T, own_T, entropy_T, id_TK, logprob_TK)


def teacher_scores(
    scored: Scored, rollouts: Sequence[Rollout], rows: Tensor, *, top_k: int, again: bool
) -> list[Scores]:
    """The predictions of one term's teachers at some positions of its signal; empty without a distribution.

    Args:
        rows: int64 [T], rows of the signal.
        again: run the teacher once more if its signal lacks the distribution.
    """
    teacher, signal = scored.term.teacher, scored.signal.take(rows)
    if isinstance(signal, SampledSignal) and again and isinstance(teacher, SampledTeacher):
        names = teacher.teacher.names(rollouts) if isinstance(teacher.teacher, TeachersByDomain) else []
        whole = _picked(teacher.teacher.score(rollouts, scored.segments), signal)
        return _of_signal(whole, names, top_k)
    if isinstance(teacher, HiddenTeacher) and again:
        whole = _picked(LocalTeacher(teacher.language_model).score(rollouts, scored.segments), signal)
        return _of_signal(whole, [], top_k)
    names = teacher.names(rollouts) if isinstance(teacher, TeachersByDomain) else []
    return _of_signal(signal, names, top_k)


def _of_signal(signal: Signal, names: Sequence[str], top_k: int) -> list[Scores]:
    signal = signal.arrived()
    if isinstance(signal, FullSignal):
        return [scores_of(signal.hidden_TD, signal.head_VD, signal.token_T, top_k)]
    if isinstance(signal, TeachersSignal):
        found = []
        for k, name in enumerate(names):
            rows = (signal.row_TK[:, k] >= 0).nonzero()[:, 0]
            if len(rows):
                part = signal.part(k, rows)
                scores = scores_of(part.hidden_TD, part.head_VD, part.token_T, top_k, name=name)
                found.append(replace(scores, position_T=rows.cpu()))
        return found
    if isinstance(signal, SampledSignal):
        return [Scores("", torch.arange(len(signal)), signal.teacher_logprobs_T.cpu())]
    if isinstance(signal, TopKSignal):
        best = signal.id_TK[:, :top_k].cpu(), signal.logprob_TK[:, :top_k].cpu()
        return [Scores("", torch.arange(len(signal)), signal.teacher_logprobs_T.cpu(), None, *best)]
    if isinstance(signal, CrossSignal):
        scores = scores_of(signal.teacher_hidden_TD, signal.head_VD, signal.teacher_token_T, top_k)
        return [replace(scores, logprob_T=scores.logprob_T + signal.teacher_rest_T.cpu(), foreign=True)]
    return []  # a reward or a reference token has no distribution


def _picked(whole: Signal, wanted: Signal) -> Signal:
    """The rows of a signal at the positions of another."""
    key_T, wanted_T = (s.rollout_T.cpu() * 2**32 + s.position_T.cpu() for s in (whole, wanted))
    return whole.take(torch.isin(key_T, wanted_T).to(whole.rollout_T.device))
