"""Losses on the sampled token against formulas in float64, and what their gradients are in the mean.

The mean over the student's draws is taken exactly: every token of the vocabulary in turn, weighted by its probability.
Suffixes: T positions, V vocabulary, D hidden units.
"""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opd.losses import (
    direct_estimate,
    group_advantage,
    linear_divergence,
    linear_token_loss,
    policy_gradient,
    reward_to_go,
)
from opd.losses.full_vocab import TokenFunction
from opd.losses.sampled import ESTIMATORS
from support.cases import Case, assert_same, make_case


def ours(case: Case, token_T: Tensor, function: TokenFunction, **options: float) -> tuple[Tensor, ...]:
    loss = linear_token_loss(
        case.student_hidden,
        case.student_head,
        token_T,
        function,
        weight=case.weight,
        **options,  # type: ignore[arg-type]
    )
    return loss.detach(), *torch.autograd.grad(loss, (case.student_hidden, case.student_head))


def logprobs(case: Case, token_T: Tensor, temperature: float = 1.0) -> tuple[Case, Tensor]:
    c = case.double()
    log_p = (c.student_hidden @ c.student_head.T / temperature).log_softmax(-1)
    return c, log_p.gather(1, token_T[:, None])[:, 0]


def draws(seed: int, case: Case, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, advantages, and logprobs at which importance ratios lie between 0.4 and 2.5."""
    random = torch.Generator().manual_seed(seed)
    tokens = len(case.weight)
    token_T = torch.randint(len(case.student_head), (tokens,), generator=random)
    drift_T = (torch.rand(tokens, generator=random) * 2 - 1) * 0.9
    return (
        token_T,
        torch.randn(tokens, generator=random),
        logprobs(case, token_T, temperature)[1].detach().float() + drift_T,
    )


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(1, 19),
    vocab=st.integers(2, 60),
    scale=st.sampled_from([0.5, 1.5, 4.0]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    clip=st.sampled_from([None, (0.2, 0.28), (0.5, 0.1)]),
    max_ratio=st.sampled_from([None, 0.7, 1.5]),
    chunk_tokens=st.sampled_from([None, 1, 4]),
)
def test_policy_gradient_equals_the_formula(
    seed: int,
    tokens: int,
    vocab: int,
    scale: float,
    temperature: float,
    clip: tuple[float, float] | None,
    max_ratio: float | None,
    chunk_tokens: int | None,
) -> None:
    """Some positions have a weight of 0; ratios lie on both sides of every limit."""
    case = make_case(seed, tokens=tokens, vocab=vocab, scale=scale)
    token_T, advantage_T, rollout_T = draws(seed, case, temperature)
    function = policy_gradient(advantage_T, rollout_T, clip=clip, max_ratio=max_ratio)
    options = {"chunk_tokens": chunk_tokens} if chunk_tokens else {}
    got = ours(case, token_T, function, temperature=temperature, **options)

    c, log_p = logprobs(case, token_T, temperature)
    ratio = (log_p - rollout_T).exp()
    if max_ratio:  # a constant factor of log p: value min(r, cap) A, gradient min(r, cap) A ∇log p
        capped = ratio.detach().clamp_max(max_ratio)
        ratio = capped * (log_p - log_p.detach()).exp()
    gain = ratio * advantage_T
    if clip:
        gain = torch.minimum(gain, ratio.clamp(1 - clip[0], 1 + clip[1]) * advantage_T)
    loss = -(c.weight * gain).sum()
    assert_same(got, (loss.detach(), *torch.autograd.grad(loss, (c.student_hidden, c.student_head))))


def test_ratios_are_clipped_token_by_token_and_not_after_the_mean() -> None:
    """Ratios of 2 and 0.1, advantage 1: each is cut before the mean. The mean ratio, 1.05, would not be cut at all."""
    log_p, ratio = torch.tensor([-1.0, -1.0]), torch.tensor([2.0, 0.1])
    function = policy_gradient(torch.ones(2), log_p - ratio.log(), clip=(0.2, 0.2))
    loss, slope = function(torch.arange(2), log_p)
    torch.testing.assert_close(loss, -torch.tensor([1.2, 0.1]))
    torch.testing.assert_close(slope, -torch.tensor([0.0, 0.1]))


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_direct_estimates_equal_the_formula(estimator: str, temperature: float) -> None:
    case = make_case(3)
    token_T, teacher_T, _ = draws(3, case)
    teacher_T = teacher_T - 3
    got = ours(case, token_T, direct_estimate(teacher_T, estimator), temperature=temperature)
    c, log_p = logprobs(case, token_T, temperature)
    ratio = teacher_T - log_p
    loss = (c.weight * (ratio**2 / 2 if estimator == "k2" else ratio.exp() - ratio - 1)).sum()
    assert_same(got, (loss.detach(), *torch.autograd.grad(loss, (c.student_hidden, c.student_head))))


def mean_gradient(case: Case, make: object) -> Tensor:
    """Σ_y p(y) ∇ loss(y), exactly, for the student's hidden states."""
    log_p = (case.student_hidden @ case.student_head.T).log_softmax(-1).detach()
    total = torch.zeros_like(case.student_hidden)
    for token in range(log_p.shape[1]):
        token_T = torch.full((len(log_p),), token)
        loss = linear_token_loss(
            case.student_hidden,
            case.student_head,
            token_T,
            make(token, log_p[:, token]),  # type: ignore[operator]
            weight=log_p[:, token].exp(),
        )
        total += torch.autograd.grad(loss, case.student_hidden)[0]
    return total


def full_gradient(case: Case, name: str) -> Tensor:
    loss = linear_divergence(*case.tensors(), weight=torch.ones_like(case.weight), divergence=name)
    return torch.autograd.grad(loss, case.student_hidden)[0]


def test_in_the_mean_policy_gradient_and_k2_are_the_gradient_of_reverse_kl_and_k3_of_forward_kl() -> None:
    case = make_case(5)
    log_q = (case.teacher_hidden @ case.teacher_head.T).log_softmax(-1)
    reverse, forward = full_gradient(case, "reverse_kl"), full_gradient(case, "forward_kl")

    def gradient(kind: str) -> Tensor:
        def make(token: int, rollout_T: Tensor) -> TokenFunction:
            if kind == "policy":
                return policy_gradient(log_q[:, token] - rollout_T, rollout_T)
            return direct_estimate(log_q[:, token], kind)

        return mean_gradient(case, make)

    for kind, wanted in (("policy", reverse), ("k2", reverse), ("k3", forward)):
        torch.testing.assert_close(gradient(kind), wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(reverse, forward, atol=1e-2)


def test_a_baseline_leaves_the_mean_gradient_and_takes_variance() -> None:
    case = make_case(5)
    log_q = (case.teacher_hidden @ case.teacher_head.T).log_softmax(-1)
    log_p = (case.student_hidden @ case.student_head.T).log_softmax(-1).detach()
    mean_T = (log_p.exp() * (log_q - log_p)).sum(-1)

    def gradient(baseline_T: Tensor) -> Tensor:
        return mean_gradient(case, lambda y, own_T: policy_gradient(log_q[:, y] - own_T - baseline_T, own_T))

    torch.testing.assert_close(gradient(mean_T), gradient(torch.zeros_like(mean_T)), rtol=1e-4, atol=1e-5)
    size = (log_p.exp() * (log_q - log_p).square()).sum(-1)
    assert bool(((log_p.exp() * (log_q - log_p - mean_T[:, None]).square()).sum(-1) < size).all())


def test_k1_differentiated_as_it_stands_knows_nothing_of_the_teacher() -> None:
    """The trap: loss log p(y) − log q(y) has the gradient of log p(y), whose mean is zero."""
    case = make_case(6)
    mean = mean_gradient(case, lambda token, rollout_T: lambda where, log_p: (log_p, torch.ones_like(log_p)))
    assert float(mean.abs().max()) < 1e-5


def test_a_discounted_sum_stays_within_its_rollout() -> None:
    advantage_T, rollout_T = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.tensor([0, 0, 0, 3, 3])
    assert reward_to_go(advantage_T, rollout_T, 0.5).tolist() == [3.0, 4.0, 4.0, 16.0, 16.0]
    assert reward_to_go(advantage_T, rollout_T, 0.0).tolist() == advantage_T.tolist()
    assert advantage_T.tolist() == [1, 2, 4, 8, 16]


def test_group_advantages_equal_the_formula_and_vanish_where_all_are_equal() -> None:
    groups = {0: [1.0, 0.0, 0.0, 1.0, 1.0], 1: [1.0, 1.0], 2: [0.0], 3: [0.25, 0.5, 1.0]}
    order = [(g, r) for g, rewards in groups.items() for r in rewards][::-1]
    group_B, reward_B = (torch.tensor(x) for x in zip(*order, strict=True))
    for normalize_std, (i, (g, r)) in product((True, False), enumerate(order)):
        rewards = groups[g]
        mean = sum(rewards) / len(rewards)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in rewards) / len(rewards))
        wanted = (r - mean) / (deviation if normalize_std and deviation else 1)
        assert float(group_advantage(reward_B, group_B, normalize_std=normalize_std)[i]) == pytest.approx(
            wanted, abs=1e-6
        )
