"""How student and teacher stand to each other on the student's own rollouts: the figures that say why a run works.

Suffixes: T positions, N positions of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from opd.evaluation.metrics import Metrics
from opd.losses.support import largest
from opd.models.forward import align, states_of
from opd.models.language import LanguageModel
from opd.output.format import PREFIX
from opd.teachers.local import LocalTeacher
from opd.teachers.views import PlainView
from opd.types import FullSignal, Rollout, Signal, View

TOP = 16
"""k of the overlap, as in the source."""

CHUNK_BYTES = 2**26
"""[N, V] float32 at one time."""


@torch.no_grad()
def diagnose(student: LanguageModel, rollouts: Sequence[Rollout], teacher: LocalTeacher, view: View) -> Metrics:
    """Compare both distributions at every position that the teacher speaks about.

    Args:
        student: as it is now.
        rollouts: its own, sampled at temperature 1.
        teacher: reads them through the view.
        view: what the teacher sees.

    Returns:
        Means over positions, each name behind ``teacher/``; nothing where the teacher has nothing to say.
        ``overlap@16``: share of the 16 likeliest tokens that both have. ``overlap_mass``: the student's mass on the
        shared ones. ``overlap_advantage``: p̄ (log q̄ − log p̄) per shared token, both renormalised on them.
        ``entropy``, ``teacher_entropy``, ``entropy_gap`` (mean absolute difference), ``forward_kl``, ``reverse_kl``:
        nats. ``reverse_kl/quarter_1`` to ``_4``: by the part of its rollout that a position lies in.
        ``reverse_kl/number``, ``/word``, ``/mark``, ``/special``: by what the student's token is.

    Source: Rethinking OPD, arXiv 2604.13016; tests/test_diagnostics.py.
    """
    signal = teacher.score(rollouts, view.segments(rollouts))
    if not len(signal):
        return {}
    where, own = states_of(student, rollouts, PlainView().segments(rollouts), max_tokens=teacher.max_tokens)
    hidden_TD = own.hidden_TD[align(rollouts, where, signal)]
    figures = _compare(hidden_TD, student.head_VD.detach().to(hidden_TD.dtype), signal)
    reverse_T = figures["reverse_kl"]
    metrics = {name: value_T.nanmean().item() for name, value_T in figures.items()}
    for name, member_T in _groups(student.tokenizer, rollouts, signal).items():
        if member_T.any():
            metrics[f"reverse_kl/{name}"] = reverse_T[member_T].mean().item()
    return {PREFIX + name: value for name, value in metrics.items()}


def _compare(hidden_TD: Tensor, head_VD: Tensor, teacher: FullSignal) -> dict[str, Tensor]:
    """Each figure at each position, float32 [T]."""
    vocab = min(len(head_VD), len(teacher.head_VD))
    head_VE = teacher.head_VD.to(teacher.hidden_TD.dtype)[:vocab]
    parts: list[dict[str, Tensor]] = []
    for rows in torch.arange(len(hidden_TD), device=hidden_TD.device).split(max(CHUNK_BYTES // (4 * vocab), 1)):
        log_p_NV = (hidden_TD[rows] @ head_VD[:vocab].T).log_softmax(-1, dtype=torch.float32)
        log_q_NV = (teacher.hidden_TD[rows] @ head_VE.T).log_softmax(-1, dtype=torch.float32)
        parts.append(_figures(log_p_NV, log_q_NV))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _figures(log_p_NV: Tensor, log_q_NV: Tensor) -> dict[str, Tensor]:
    p_NV, q_NV = log_p_NV.exp(), log_q_NV.exp()
    shared_NV = largest(log_p_NV, TOP) & largest(log_q_NV, TOP)
    count_N = shared_NV.sum(-1)
    log_p_shared_NV = log_p_NV.masked_fill(~shared_NV, -torch.inf).log_softmax(-1)
    log_q_shared_NV = log_q_NV.masked_fill(~shared_NV, -torch.inf).log_softmax(-1)
    gain_NV = log_p_shared_NV.exp() * (log_q_shared_NV - log_p_shared_NV)
    entropy_N, teacher_entropy_N = -(p_NV * log_p_NV).sum(-1), -(q_NV * log_q_NV).sum(-1)
    return {
        f"overlap@{TOP}": count_N / min(TOP, log_p_NV.shape[-1]),
        "overlap_mass": torch.where(shared_NV, p_NV, 0.0).sum(-1),
        # NaN where nothing is shared: such a position has no say in the mean.
        "overlap_advantage": torch.where(shared_NV, gain_NV, 0.0).sum(-1) / count_N,
        "entropy": entropy_N,
        "teacher_entropy": teacher_entropy_N,
        "entropy_gap": (entropy_N - teacher_entropy_N).abs(),
        "forward_kl": (q_NV * (log_q_NV - log_p_NV)).sum(-1),
        "reverse_kl": (p_NV * (log_p_NV - log_q_NV)).sum(-1),
    }


def _groups(tokenizer: Any, rollouts: Sequence[Rollout], signal: Signal) -> dict[str, Tensor]:
    """Which positions belong to which quarter and class, bool [T] each."""
    length_T = torch.tensor([len(r.completion_ids) for r in rollouts], device=signal.token_T.device)[signal.rollout_T]
    quarter_T = signal.position_T * 4 // length_T
    ids, index_T = signal.token_T.unique(return_inverse=True)
    kinds = [token_class(tokenizer, token) for token in ids.tolist()]
    groups = {f"quarter_{n + 1}": quarter_T == n for n in range(4)}
    for kind in sorted(set(kinds)):
        groups[kind] = torch.tensor([k == kind for k in kinds], device=index_T.device)[index_T]
    return groups


def token_class(tokenizer: Any, token: int) -> str:
    """``special``, ``number``, ``word`` or ``mark``."""
    if token in tokenizer.all_special_ids:
        return "special"
    text = tokenizer.decode([token]).strip()
    if any(c.isdigit() for c in text):
        return "number"
    return "word" if any(c.isalpha() for c in text) else "mark"
