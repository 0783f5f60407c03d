"""What student and teachers think at every position, for people to look at.

Suffixes: T positions, N positions of a chunk, V vocabulary, K likeliest tokens, D hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opd.teachers.experts import Experts
from opd.teachers.hidden import HiddenTeacher
from opd.teachers.local import LocalTeacher
from opd.teachers.sampled import SampledTeacher
from opd.types import CrossSignal, ExpertsSignal, FullSignal, Rollout, SampledSignal, Scored, Signal

CHUNK_BYTES = 2**26
"""[N, V] float32 at one time."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one model thinks at some positions, at temperature 1.

    Attributes:
        name: of the teacher; empty for the only one.
        position_T: [T] which of the signal's positions.
        logprob_T: [T] of the student's token, nats.
        entropy_T: [T] nats; None where only the sampled token's log-probability is known.
        top_id_TK, top_logprob_TK: [T, K] the likeliest tokens, best first.
        foreign: whether the ids are those of another tokenizer.
    """

    name: str
    position_T: Tensor
    logprob_T: Tensor
    entropy_T: Tensor | None = None
    top_id_TK: Tensor | None = None
    top_logprob_TK: Tensor | None = None
    foreign: bool = False


@torch.no_grad()
def opinion(
    hidden_TD: Tensor, head_VD: Tensor, token_T: Tensor, top_k: int, *, vocab_size: int | None = None, name: str = ""
) -> Opinion:
    """What softmax(hidden · headᵀ) says, chunk by chunk."""
    head_VD = head_VD.detach().to(hidden_TD)[:vocab_size]
    vocab, found = len(head_VD), []
    for rows in torch.arange(len(hidden_TD), device=hidden_TD.device).split(max(CHUNK_BYTES // (4 * vocab), 1)):
        log_p_NV = (hidden_TD[rows] @ head_VD.T).log_softmax(-1, dtype=torch.float32)
        best = log_p_NV.topk(min(top_k, vocab), dim=-1)
        own_N = log_p_NV.gather(1, token_T[rows, None].clamp_max(vocab - 1))[:, 0]
        found.append((own_N, -(log_p_NV.exp() * log_p_NV).sum(-1), best.indices, best.values))
    position_T = torch.arange(len(hidden_TD))
    if not found:
        none = torch.zeros(0)
        return Opinion(name, position_T, none, none, none[:, None].long(), none[:, None])
    own_T, entropy_T, id_TK, logprob_TK = (torch.cat([part[n] for part in found]).cpu() for n in range(4))
    return Opinion(name, position_T, own_T, entropy_T, id_TK, logprob_TK)


def opinions(
    scored: Scored, rollouts: Sequence[Rollout], rows: Tensor, *, top_k: int, vocab_size: int | None, again: bool
) -> list[Opinion]:
    """What the teachers of one term think at some of their signal's positions, as far as it is known.

    Args:
        rows: int64 [T], of the signal.
        again: may ask a teacher again whose signal is the sampled token's log-probability alone.
    """
    teacher, signal = scored.term.teacher, scored.signal.take(rows)
    if isinstance(signal, SampledSignal) and again and isinstance(teacher, SampledTeacher):
        names = teacher.teacher.names(rollouts) if isinstance(teacher.teacher, Experts) else []
        whole = _picked(teacher.teacher.score(rollouts, scored.segments), signal)
        return _of_signal(whole, names, top_k, vocab_size)
    if isinstance(teacher, HiddenTeacher) and again:
        whole = _picked(LocalTeacher(teacher.language_model).score(rollouts, scored.segments), signal)
        return _of_signal(whole, [], top_k, vocab_size)
    names = teacher.names(rollouts) if isinstance(teacher, Experts) else []
    return _of_signal(signal, names, top_k, vocab_size)


def _of_signal(signal: Signal, names: Sequence[str], top_k: int, vocab_size: int | None) -> list[Opinion]:
    if isinstance(signal, FullSignal):
        return [opinion(signal.hidden_TD, signal.head_VD, signal.token_T, top_k, vocab_size=vocab_size)]
    if isinstance(signal, ExpertsSignal):
        found = []
        for k, name in enumerate(names):
            rows = (signal.row_TK[:, k] >= 0).nonzero()[:, 0]
            if len(rows):
                part = signal.part(k, rows)
                said = opinion(part.hidden_TD, part.head_VD, part.token_T, top_k, vocab_size=vocab_size, name=name)
                found.append(_moved(said, rows))
        return found
    if isinstance(signal, SampledSignal):
        return [Opinion("", torch.arange(len(signal)), signal.teacher_logprobs_T.cpu())]
    if isinstance(signal, CrossSignal):
        said = opinion(signal.teacher_hidden_TD, signal.head_VD, signal.teacher_token_T, top_k)
        both_T = said.logprob_T + signal.teacher_rest_T.cpu()
        top = said.top_id_TK, said.top_logprob_TK
        return [Opinion("", said.position_T, both_T, said.entropy_T, *top, foreign=True)]
    return []  # the outcome, or the token itself: no distribution


def _picked(whole: Signal, wanted: Signal) -> Signal:
    """A signal at the positions of another."""
    key_T, wanted_T = (s.rollout_T.cpu() * 2**32 + s.position_T.cpu() for s in (whole, wanted))
    return whole.take(torch.isin(key_T, wanted_T).to(whole.rollout_T.device))


def _moved(said: Opinion, rows: Tensor) -> Opinion:
    return Opinion(said.name, rows.cpu(), said.logprob_T, said.entropy_T, said.top_id_TK, said.top_logprob_TK)
