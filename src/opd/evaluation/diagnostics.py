"""Diagnostics: student and teacher compared on the student's own rollouts.

Suffixes: T positions, N positions of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from opd.axes.views.plain import PlainView
from opd.evaluation.distributions import logprob_chunks
from opd.losses.support import largest
from opd.models.forward import align, states_of
from opd.models.language import LanguageModel
from opd.output.format import PREFIX
from opd.teachers.local import LocalTeacher
from opd.types import Metrics, Rollout, Signal, View

TOP = 16
"""k of the overlap, as in the source."""


@torch.no_grad()
def diagnose(student: LanguageModel, rollouts: Sequence[Rollout], teacher: LocalTeacher, view: View) -> Metrics:
    """Compare both distributions at every position of the teacher's signal.

    Args:
        student: the model with its current weights.
        rollouts: the student's own, sampled at temperature 1.
        teacher: scores the rollouts through the view.
        view: the teacher's input.

    Returns:
        Means over positions, each name behind ``teacher/``; empty if the signal is empty.
        ``overlap@16``: share of the 16 likeliest tokens that both have. ``overlap_mass``: the student's mass on the
        shared ones. ``overlap_advantage``: p̄ (log q̄ − log p̄) per shared token, both renormalised on them;
        left out if no position has one.
        ``entropy``, ``teacher_entropy``, ``entropy_gap`` (mean absolute difference), ``forward_kl``, ``reverse_kl``:
        nats. ``reverse_kl/quarter_1`` to ``_4``: by quarter of the rollout.
        ``reverse_kl/number``, ``/word``, ``/mark``, ``/special``: by class of the student's token.

    Source: Rethinking OPD, arXiv 2604.13016; tests/evaluation/test_diagnostics.py.
    """
    signal = teacher.score(rollouts, view.segments(rollouts)).arrived()
    if not len(signal):
        return {}
    scored, states = states_of(student, rollouts, PlainView().segments(rollouts), max_tokens=teacher.max_tokens)
    hidden_TD = states.hidden_TD[align(rollouts, scored, signal)]
    pair = (hidden_TD, student.head_VD), (signal.hidden_TD, signal.head_VD)
    chunks = [_compare(log_p_NV, log_q_NV) for _, (log_p_NV, log_q_NV) in logprob_chunks(*pair)]
    per_position = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    if per_position["overlap_advantage"].isnan().all():  # no position has a shared token
        del per_position["overlap_advantage"]
    metrics = {name: value_T.nanmean().item() for name, value_T in per_position.items()}
    for name, member_T in _groups(student.tokenizer, rollouts, signal).items():
        if member_T.any():
            metrics[f"reverse_kl/{name}"] = per_position["reverse_kl"][member_T].mean().item()
    return {PREFIX + name: value for name, value in metrics.items()}


def _compare(log_p_NV: Tensor, log_q_NV: Tensor) -> dict[str, Tensor]:
    """Each metric at each position, float32 [N]."""
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
        # 0 / 0 = NaN without a shared token; the mean over positions leaves it out.
        "overlap_advantage": torch.where(shared_NV, gain_NV, 0.0).sum(-1) / count_N,
        "entropy": entropy_N,
        "teacher_entropy": teacher_entropy_N,
        "entropy_gap": (entropy_N - teacher_entropy_N).abs(),
        "forward_kl": (q_NV * (log_q_NV - log_p_NV)).sum(-1),
        "reverse_kl": (p_NV * (log_p_NV - log_q_NV)).sum(-1),
    }


def _groups(tokenizer: Any, rollouts: Sequence[Rollout], signal: Signal) -> dict[str, Tensor]:
    """Membership of each position in each quarter and token class, bool [T] each."""
    length_T = torch.tensor([len(r.completion_ids) for r in rollouts], device=signal.token_T.device)[signal.rollout_T]
    quarter_T = signal.position_T * 4 // length_T
    ids, index_T = signal.token_T.unique(return_inverse=True)
    kinds = [token_class(tokenizer, token) for token in ids.tolist()]
    groups = {f"quarter_{n + 1}": quarter_T == n for n in range(4)}
    for kind in sorted(set(kinds)):
        groups[kind] = torch.tensor([k == kind for k in kinds], device=index_T.device)[index_T]
    return groups


def token_class(tokenizer: Any, token: int) -> str:
    """The class of a token: ``special``, ``number``, ``word`` or ``mark``."""
    if token in tokenizer.all_special_ids:
        return "special"
    text = tokenizer.decode([token]).strip()
    if any(c.isdigit() for c in text):
        return "number"
    return "word" if any(c.isalpha() for c in text) else "mark"
