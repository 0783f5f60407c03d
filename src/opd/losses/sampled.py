"""One number a token: losses on the sampled token's log-probability, and the advantages they use.

R = log q(y) − log p(y), the teacher's log-probability of the student's own token less the student's. Its mean over the
student's tokens is minus the reverse KL, so R is an advantage: what to do more of, and what less.

Differentiating the sampled reverse KL itself, log p(y) − log q(y) (k1), is a trap and not offered: the teacher is a
constant in it, so its gradient is that of log p(y) whatever the teacher says, and zero in the mean.

Suffixes: T positions, B some of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from opd.losses.full_vocab import TokenFunction

ESTIMATORS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "k2": lambda ratio: (ratio.square() / 2, -ratio),
    "k3": lambda ratio: (ratio.expm1() - ratio, -ratio.expm1()),
}
"""Estimates of the divergence: log teacher − log student at the sampled token -> value, and ∂value/∂log p(token)."""


def policy_gradient(
    advantage_T: Tensor,
    rollout_logprobs_T: Tensor,
    *,
    clip: tuple[float, float] | None = None,
    max_ratio: float | None = None,
) -> TokenFunction:
    """−min(r A, clip(r, 1 − low, 1 + high) A), r = p(y) / μ(y), as a function for ``linear_token_loss``.

    With neither clip nor cap this is −r A: importance sampling, whose gradient at r = 1 is −A ∇log p(y).

    Args:
        advantage_T: float32 [T], nats or reward units, detached.
        rollout_logprobs_T: float32 [T], nats, log μ(y) under which the token was drawn, detached.
        clip: (low, high) of PPO; no gradient where the ratio has already moved that far the way the advantage asks.
        max_ratio: truncated importance sampling: the ratio is a constant factor min(r, max_ratio) of log p(y).

    Source: Thinking Machines, On-Policy Distillation (2025); PPO, arXiv 1707.06347; truncation, MiMo-V2-Flash,
    arXiv 2601.02780. tests/fidelity/test_sampled.py.
    """
    low, high = clip or (1.0, torch.inf)

    def function(positions_B: Tensor, log_p_B: Tensor) -> tuple[Tensor, Tensor]:
        advantage_B = advantage_T[positions_B]
        ratio_B = (log_p_B - rollout_logprobs_T[positions_B]).exp()
        if max_ratio is not None:
            ratio_B = ratio_B.clamp_max(max_ratio)
        gain_B = ratio_B * advantage_B
        clipped_B = ratio_B.clamp(1 - low, 1 + high) * advantage_B
        return -torch.minimum(gain_B, clipped_B), torch.where(gain_B <= clipped_B, -gain_B, 0.0)

    return function


def direct_estimate(teacher_logprobs_T: Tensor, estimator: str) -> TokenFunction:
    """k2 = R² / 2 or k3 = e^R − R − 1, differentiated as they stand, as a function for ``linear_token_loss``.

    k2's gradient is −R ∇log p(y), the policy gradient of reverse KL at ratio 1. k3's value estimates the reverse KL
    too, but its gradient, (1 − e^R) ∇log p(y), is in the mean that of *forward* KL.

    Args:
        teacher_logprobs_T: float32 [T], nats, detached.
        estimator: a key of ``ESTIMATORS``.

    Source: Schulman, Approximating KL Divergence (2020); KDRL, arXiv 2506.02208, finds k2 better.
    tests/fidelity/test_sampled.py.
    """

    estimate = ESTIMATORS[estimator]

    def function(positions_B: Tensor, log_p_B: Tensor) -> tuple[Tensor, Tensor]:
        return estimate(teacher_logprobs_T[positions_B] - log_p_B)

    return function


def reward_to_go(advantage_T: Tensor, rollout_T: Tensor, discount: float) -> Tensor:
    """Σ_{u ≥ t} discount^(u − t) A_u within each rollout, [T].

    Args:
        advantage_T: float32 [T], ordered by rollout and position.
        rollout_T: int64 [T], which rollout.
        discount: 0 gives the advantage back, 1 the plain sum to the end.

    Source: MiniLLM, arXiv 2306.08543. Thinking Machines found that a discount above 0 does not help.
    """
    if discount == 0:
        return advantage_T
    totals, rollouts = advantage_T.tolist(), rollout_T.tolist()
    for t in range(len(totals) - 2, -1, -1):
        if rollouts[t] == rollouts[t + 1]:
            totals[t] += discount * totals[t + 1]
    return advantage_T.new_tensor(totals)


def group_advantage(reward_B: Tensor, group_B: Tensor, *, normalize_std: bool = True) -> Tensor:
    """(r − mean) / standard deviation within each group of rollouts of one prompt, [B]; 0 where all are equal.

    Args:
        reward_B: float32 [B], a rollout each.
        group_B: int64 [B], which prompt, numbered from 0.
        normalize_std: divide by the group's (population) standard deviation, or not: Dr. GRPO.

    Source: GRPO, arXiv 2402.03300; Dr. GRPO, arXiv 2503.20783. tests/fidelity/test_grpo.py.
    """
    num_groups = int(group_B.max()) + 1 if len(group_B) else 0
    count_G = torch.bincount(group_B, minlength=num_groups)

    def mean(x_B: Tensor) -> Tensor:
        return (x_B.new_zeros(num_groups).index_add_(0, group_B, x_B) / count_G)[group_B]

    centred_B = reward_B - mean(reward_B)
    if not normalize_std:
        return torch.where(centred_B.abs() > 1e-6, centred_B, 0.0)  # equal rewards differ from their mean by rounding
    deviation_B = mean(centred_B.square()).sqrt()
    return torch.where(deviation_B > 1e-6, centred_B / deviation_B.clamp_min(1e-6), 0.0)


def overlong_penalty(length_B: Tensor, *, longest: int, margin: int) -> Tensor:
    """min(0, max(−1, (longest − margin − |y|) / margin)): what a long answer's reward loses, float32 [B] in [−1, 0].

    Args:
        length_B: int64 [B], tokens of each answer.
        longest: tokens at which an answer is cut off.
        margin: number of tokens before ``longest`` that cost 1 / margin each.

    Source: soft overlong punishment, DAPO, arXiv 2503.14476, equation 13. tests/fidelity/test_grpo.py.
    """
    return ((longest - margin - length_B) / margin).clamp(-1, 0)
