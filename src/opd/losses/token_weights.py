"""Which of the tokens that carry a signal count, and how much.

Suffixes: T positions of a signal, R rollouts or turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from opd.losses import linear_entropy
from opd.signals import FullSignal, SampledSignal
from opd.types import Rollout, Signal

EPSILON = 1e-6
"""SOD's, in nats."""

Rows = Callable[[Tensor], Tensor]
"""Gives the rows of all processes, [N, ...], whose signals are parts of one batch; one process has all of it."""


def _same(rows: Tensor) -> Tensor:
    return rows


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Weights of a signal's positions; the loss is their weighted sum over the number of positions that count.

    Attributes:
        skip_ids: tokens that never count, such as a template's special ones.
        first: number of the student's tokens that count, from a rollout's start; None for all.
        mean: over all tokens alike; or every rollout or every turn counts as much as any other, however long; or the
            mean over rollouts of their sums over ``longest`` (constant).
        longest: tokens that a rollout may have.
        last: number of the student's tokens that count, from a rollout's end.
        after: number of the student's tokens at a rollout's start that do not count.
        outside_events: factor on tokens outside the spans of the environment's events.
        ramp: late tokens count more, 1 at the student's first and 1 + ramp at its last token of a rollout.
        fade: δ of SOD: turn k counts (d_1 + ε) / (d_k + ε), at most 1 + δ, where d is the mean absolute log-ratio of a
            turn's tokens. (The product over neighbouring turns in the source telescopes to this.)
        importance: γ of IW-OPD: early tokens count up to 1 + γ, falling to 1 as the log-ratios to come run out.
        difficulty: of each position, float32 [T]; None where it does not matter.
        hardest: share of the batch's positions of some weight that are kept, the most difficult; at least one. Nothing
            corrects for the others: the loss is that of the hard tokens.
        rows: see ``Rows``.

    Source: special tokens, arXiv 2603.25562; first tokens, arXiv 2602.15260; importance, arXiv 2606.22600; means over
    rollouts, GRPO arXiv 2402.03300, over tokens, DAPO arXiv 2503.14476, over a constant, Dr. GRPO arXiv 2503.20783
    (tests/fidelity/test_grpo.py); fading turns, arXiv 2605.07725; first three tokens left out, SDFT arXiv 2601.19897;
    ramp, our choice of a form for arXiv 2605.21606; hardest, TIP, arXiv 2604.14084.
    """

    skip_ids: frozenset[int] = frozenset()
    first: int | None = None
    after: int = 0
    last: int | None = None
    outside_events: float = 1.0
    mean: Literal["token", "sequence", "turn", "constant"] = "token"
    longest: int = 1
    importance: float = 0.0
    ramp: float = 0.0
    fade: float | None = None
    difficulty: Callable[[Sequence[Rollout], Signal], Tensor] | None = None
    hardest: float = 1.0
    rows: Rows = _same

    def __call__(self, rollouts: Sequence[Rollout], signal: Signal) -> Tensor:
        """float32 [T], finite and not negative, 0 where a position does not count."""
        weight_T = torch.ones(len(signal), device=signal.token_T.device)
        if self.importance:
            weight_T = 1 + self.importance * _still_to_come(signal)
        if self.ramp:
            weight_T = weight_T * (1 + self.ramp * _progress(rollouts, signal))
        if self.fade is not None:
            weight_T = weight_T * _nearness(rollouts, signal).clamp_max(1 + self.fade)
        if self.outside_events != 1:
            inside_T = _look_up(signal, [_inside_events(r) for r in rollouts]) > 0
            weight_T = torch.where(inside_T, weight_T, weight_T * self.outside_events)
        if self.skip_ids:
            skipped = torch.tensor(sorted(self.skip_ids), device=signal.token_T.device)
            weight_T = weight_T.masked_fill(torch.isin(signal.token_T, skipped), 0.0)
        if self.first is not None or self.after:
            rank_T = _rank(rollouts, signal)
            outside = (rank_T <= self.after) | (rank_T > (self.first or torch.inf))
            weight_T = weight_T.masked_fill(outside, 0.0)
        if self.last is not None:
            weight_T = weight_T.masked_fill(_rank(rollouts, signal) <= _length(rollouts, signal) - self.last, 0.0)
        if self.difficulty is not None:
            weight_T = _hardest(weight_T, signal, self.difficulty(rollouts, signal), self.hardest, self.rows)
        if self.mean == "constant":
            here = weight_T.new_tensor(len(signal.rollout_T[weight_T > 0].unique()), dtype=torch.int64)
            rollouts_that_count = int(_total(here, self.rows))
            # The loop divides by the number of positions that count.
            positions = _total((weight_T > 0).sum(), self.rows)
            return weight_T * positions / max(rollouts_that_count * self.longest, 1)
        if self.mean != "token":
            group_T = signal.rollout_T if self.mean == "sequence" else _look_up(signal, [_turns(r) for r in rollouts])
            weight_T = _balanced(weight_T, signal.rollout_T, group_T, self.rows)
        return weight_T


@dataclass(frozen=True, kw_only=True)
class EntropyThreshold:
    """Only positions count at which the teacher's entropy is above a threshold.

    The loss stays a mean over all positions of the signal, so that its weight does not grow where few are left.

    Attributes:
        entropy: the threshold, in nats.
        temperature: divides the logits.
        among: weights of the positions that may count; None for all alike.
        rows: see ``Rows``.

    Source: entropy-aware distillation, arXiv 2603.07079.
    """

    entropy: float
    temperature: float = 1.0
    among: Positions | None = None
    rows: Rows = _same

    def __call__(self, rollouts: Sequence[Rollout], signal: Signal) -> Tensor:
        """float32 [T]."""
        assert isinstance(signal, FullSignal)
        signal = signal.arrived()
        head_VD = signal.head_VD.to(signal.hidden_TD.dtype)
        above_T = linear_entropy(signal.hidden_TD, head_VD, temperature=self.temperature) > self.entropy
        weight_T = self.among(rollouts, signal) if self.among else torch.ones_like(above_T, dtype=torch.float32)
        may = _total((weight_T > 0).sum(), self.rows).clamp_min(1)
        return weight_T.masked_fill(~above_T, 0.0) * _total(((weight_T > 0) & above_T).sum(), self.rows) / may


def _total(count: Tensor, rows: Rows) -> Tensor:
    """A count, int64 [], over the whole batch."""
    return rows(count[None]).sum(0)


def _hardest(weight_T: Tensor, signal: Signal, difficulty_T: Tensor, share: float, rows: Rows) -> Tensor:
    """The weights of the most difficult of what counts, 0 elsewhere; of two alike the earlier one is kept."""
    place_T = signal.rollout_T * 2**32 + signal.position_T
    counts = weight_T > 0
    place_N, order_N = rows(place_T).sort()
    difficulty_N = rows(difficulty_T.masked_fill(~counts, -torch.inf))[order_N]
    most = math.ceil(share * int(_total(counts.sum(), rows)))
    kept = place_N[difficulty_N.argsort(descending=True, stable=True)[:most]]
    return weight_T.masked_fill(~torch.isin(place_T, kept), 0.0)


def _rank(rollouts: Sequence[Rollout], signal: Signal) -> Tensor:
    """Which of the student's own tokens of its rollout each is, from 1."""
    return _look_up(signal, [list(accumulate(r.completion_mask)) for r in rollouts])


def _progress(rollouts: Sequence[Rollout], signal: Signal) -> Tensor:
    """0 at the student's first token of a rollout, 1 at its last, float32 [T]."""
    return (_rank(rollouts, signal) - 1) / (_length(rollouts, signal) - 1).clamp_min(1)


def _length(rollouts: Sequence[Rollout], signal: Signal) -> Tensor:
    """How many tokens of its rollout are the student's own, int64 [T]."""
    return torch.tensor([r.num_tokens for r in rollouts], device=signal.token_T.device)[signal.rollout_T]


def _nearness(rollouts: Sequence[Rollout], signal: Signal) -> Tensor:
    """(d_1 + ε) / (d_k + ε) of each token's turn k, float32 [T]; d as in ``Positions.fade``."""
    assert isinstance(signal, SampledSignal)
    turn_T = _look_up(signal, [_turns(r) for r in rollouts])
    # Sorted by rollout and turn, so that a rollout's first turn is the first of its groups.
    groups, index_T = torch.stack([signal.rollout_T, turn_T]).unique(dim=1, return_inverse=True)
    ones = torch.ones_like(signal.advantage_T)
    count_G = torch.zeros(groups.shape[1], device=ones.device).index_add_(0, index_T, ones)
    distance_G = torch.zeros_like(count_G).index_add_(0, index_T, signal.log_ratio_T.abs()) / count_G + EPSILON
    first_G = torch.searchsorted(groups[0].contiguous(), groups[0].contiguous())
    return (distance_G[first_G] / distance_G)[index_T]


def _look_up(signal: Signal, table: list[list[int]]) -> Tensor:
    """The number in a table of rollouts and positions, int64 [T]."""
    where = zip(signal.rollout_T.tolist(), signal.position_T.tolist(), strict=True)
    return torch.tensor([table[r][p] for r, p in where], dtype=torch.int64, device=signal.token_T.device)


def _turns(rollout: Rollout) -> list[int]:
    """The number of each completion position's turn; what stands between turns has that of the turn before."""
    starts = {turn.start for turn in rollout.turns}
    return list(accumulate(int(p in starts) for p in range(len(rollout.completion_ids))))


def _inside_events(rollout: Rollout) -> list[int]:
    """1 at each completion position inside some event's span."""
    inside = {p for event in rollout.events for p in range(*event.span)}
    return [int(p in inside) for p in range(len(rollout.completion_ids))]


def _balanced(weight_T: Tensor, rollout_T: Tensor, group_T: Tensor, rows: Rows) -> Tensor:
    """The same weights with an equal sum in each (rollout, group), and a mean of 1 over what counts."""
    counts = weight_T > 0
    _, index_T = torch.stack([rollout_T, group_T]).unique(dim=1, return_inverse=True)
    sum_R = torch.zeros(int(index_T.max()) + 1 if len(index_T) else 0, device=weight_T.device)
    sum_R = sum_R.index_add_(0, index_T, weight_T)
    alive, all_counts = _total((sum_R > 0).sum(), rows), _total(counts.sum(), rows)
    return torch.where(counts, weight_T / sum_R[index_T].clamp_min(1e-12) * all_counts / alive, 0.0)


def _still_to_come(signal: Signal) -> Tensor:
    """1 − Σ_{u < t} |A_u| / Σ_u |A_u| within each rollout, float32 [T], in [0, 1]."""
    assert isinstance(signal, SampledSignal)
    size_T = signal.log_ratio_T.abs()
    share_T = torch.ones_like(size_T)
    for rollout in signal.rollout_T.unique():
        here = signal.rollout_T == rollout
        before = size_T[here].cumsum(0) - size_T[here]
        share_T[here] = 1 - before / size_T[here].sum().clamp_min(1e-12)
    return share_T.clamp(0, 1)
