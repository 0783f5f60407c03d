"""The published losses on outcomes, whole: advantages, lengths and clips against loops over answers in float64.

Suffixes: T positions, V vocabulary, D hidden units.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from opd.axes.views.plain import PlainView
from opd.losses import group_advantage, overlong_penalty
from opd.losses.objectives import PolicyGradient
from opd.losses.token_weights import Positions
from opd.signals import TokenStates
from opd.teachers.sampled import GroupAdvantages
from opd.types import Prompt, Rollout, Span

LONGEST, VOCAB, WIDTH = 12, 11, 5

REWARDS = {"some right": [1.0, 0.0, 0.0], "all right": [1.0, 1.0, 1.0], "partly": [0.25, 1.0, 0.5], "none": [0.0] * 3}


def rollouts() -> list[Rollout]:
    """Answers of 1 to 12 tokens, some cut off; in each third place stands a token that is not the student's."""
    rng, made = random.Random(3), []
    for prompt, rewards in REWARDS.items():
        for number, reward in enumerate(rewards):
            length = LONGEST if number == 1 else rng.randrange(1, LONGEST)
            mask = tuple(p % 3 != 2 for p in range(length))
            made.append(
                Rollout(
                    prompt=Prompt(id=prompt, text="x"),
                    prompt_ids=(1,),
                    completion_ids=tuple(rng.randrange(VOCAB) for _ in range(length)),
                    completion_mask=mask,
                    logprobs=tuple(-rng.uniform(1, 4) if own else math.nan for own in mask),
                    turns=(Span(0, length),),
                    finish="length" if number == 1 else "stop",
                    reward=reward,
                )
            )
    return made


def student() -> tuple[Tensor, Tensor]:
    """Hidden states of every position of every rollout and a head, float64."""
    generator = torch.Generator().manual_seed(1)
    positions = sum(len(r.completion_ids) for r in rollouts())
    hidden_TD = torch.randn(positions, WIDTH, generator=generator, dtype=torch.float64)
    return hidden_TD, torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64)


def ours(outcome: Mapping[str, Any], mean: str, clip: tuple[float, float] | None) -> tuple[float, Tensor, Tensor]:
    """Loss and gradients, put together as the loop does."""
    batch = rollouts()
    signal = GroupAdvantages(**outcome, longest=LONGEST).score(batch, PlainView().segments(batch))
    weight_T = Positions(mean=mean, longest=LONGEST)(batch, signal)  # type: ignore[arg-type]
    counts = weight_T > 0
    weight_T, signal = weight_T[counts] / counts.sum(), signal.take(counts)
    starts = [0, *torch.tensor([len(r.completion_ids) for r in batch]).cumsum(0).tolist()]
    places = zip(signal.rollout_T.tolist(), signal.position_T.tolist(), strict=True)
    row_T = torch.tensor([starts[r] + p for r, p in places])
    hidden_TD, head_VD = (x.float().requires_grad_() for x in student())
    loss = PolicyGradient(clip=clip)(TokenStates(hidden_TD[row_T], head_VD), signal, weight_T)
    hidden_grad, head_grad = torch.autograd.grad(loss, (hidden_TD, head_VD))
    return loss.item(), hidden_grad, head_grad


def reference(outcome: Mapping[str, Any], mean: str, clip: tuple[float, float] | None) -> tuple[float, Tensor, Tensor]:
    """The same from the papers' formulas, answer by answer and token by token."""
    hidden_TD, head_VD = (x.requires_grad_() for x in student())
    log_p_TV = (hidden_TD @ head_VD.T).log_softmax(-1)
    answers: list[tuple[Rollout, int]] = []
    for rollout in rollouts():
        answers.append((rollout, sum(len(r.completion_ids) for r, _ in answers)))
    sums: list[tuple[Tensor, int]] = []
    for prompt in REWARDS:
        group = [(r, start) for r, start in answers if r.prompt.id == prompt]
        rewards = []
        for rollout, _ in group:
            reward, length, cache = rollout.reward or 0.0, len(rollout.completion_ids), outcome.get("overlong_penalty")
            if cache and length > LONGEST - cache:  # DAPO's equation 13
                reward += (LONGEST - cache - length) / cache if length <= LONGEST else -1
            rewards.append(reward)
        if outcome.get("drop_zero_variance_groups") and len(set(rewards)) == 1:
            continue
        average = math.fsum(rewards) / len(rewards)
        deviation = math.sqrt(math.fsum((r - average) ** 2 for r in rewards) / len(rewards))
        for (rollout, start), reward in zip(group, rewards, strict=True):
            if outcome.get("mask_truncated") and rollout.finish != "stop":
                continue
            advantage = reward - average
            if outcome.get("normalize_std", True) and deviation:
                advantage /= deviation
            total, own = torch.zeros((), dtype=torch.float64), 0
            for p, token in enumerate(rollout.completion_ids):
                if not rollout.completion_mask[p]:
                    continue
                ratio = (log_p_TV[start + p, token] - rollout.logprobs[p]).exp()
                gain = ratio * advantage
                if clip:
                    gain = torch.minimum(gain, ratio.clamp(1 - clip[0], 1 + clip[1]) * advantage)
                total, own = total + gain, own + 1
            sums.append((total, own))
    if mean == "sequence":
        value = torch.stack([total / own for total, own in sums]).mean()
    elif mean == "token":
        value = torch.stack([total for total, _ in sums]).sum() / sum(own for _, own in sums)
    else:
        value = torch.stack([total / LONGEST for total, _ in sums]).mean()
    hidden_grad, head_grad = torch.autograd.grad(-value, (hidden_TD, head_VD))
    return -value.item(), hidden_grad, head_grad


VARIANTS: dict[str, tuple[dict[str, Any], str, tuple[float, float] | None]] = {
    "GRPO": ({}, "sequence", (0.2, 0.2)),
    "Dr. GRPO": ({"normalize_std": False}, "constant", (0.2, 0.2)),
    "DAPO": ({"drop_zero_variance_groups": True, "overlong_penalty": 5}, "token", (0.2, 0.28)),
    "DAPO, truncated answers left out": (
        {"drop_zero_variance_groups": True, "mask_truncated": True},
        "token",
        (0.2, 0.28),
    ),
    "the recipe": ({}, "token", None),
    "all at once": (
        {"drop_zero_variance_groups": True, "mask_truncated": True, "overlong_penalty": LONGEST},
        "sequence",
        (0.1, 0.3),
    ),
    "a constant over what is left": ({"drop_zero_variance_groups": True, "mask_truncated": True}, "constant", None),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_equals_its_formula_with_its_gradients(variant: str) -> None:
    got, wanted = ours(*VARIANTS[variant]), reference(*VARIANTS[variant])
    assert got[0] == pytest.approx(wanted[0], rel=1e-5, abs=1e-6)
    for ours_, theirs in zip(got[1:], wanted[1:], strict=True):
        assert float(theirs.abs().max()) > 1e-3
        torch.testing.assert_close(ours_.double(), theirs, rtol=1e-4, atol=1e-6)


def test_the_variants_differ() -> None:
    values = [round(ours(*v)[0], 5) for v in VARIANTS.values()]
    assert len(set(values)) == len(values)


def test_the_overlong_penalty_worked_out_by_hand() -> None:
    """DAPO's own setting: 20,480 tokens at most, the last 4,096 of them punished."""
    lengths = torch.tensor([1, 16_384, 16_385, 18_432, 20_480, 30_000])
    wanted = [0, 0, -1 / 4096, -0.5, -1, -1]
    assert overlong_penalty(lengths, longest=20_480, margin=4096).tolist() == pytest.approx(wanted)


def scored(rewards: Sequence[float], **outcome: Any) -> set[int]:
    """Rollouts of one prompt that get a signal."""
    batch = [
        Rollout(
            prompt=Prompt(id="p", text="x"),
            prompt_ids=(1,),
            completion_ids=(2, 3),
            completion_mask=(True, True),
            logprobs=(-1.0, -1.0),
            turns=(Span(0, 2),),
            finish="length" if n == 0 else "stop",
            reward=reward,
        )
        for n, reward in enumerate(rewards)
    ]
    return set(GroupAdvantages(**outcome, longest=4).score(batch, PlainView().segments(batch)).rollout_T.tolist())


def test_there_is_no_signal_where_nothing_differs() -> None:
    assert scored([1, 1, 1]) == scored([0.1] * 3, drop_zero_variance_groups=True) == set()
    assert scored([0, 1, 1]) == {0, 1, 2}
    assert scored([0, 1, 1], mask_truncated=True) == {1, 2}
    assert scored([0, 0, 0], mask_truncated=True) == set()


@pytest.mark.parametrize("normalize_std", [True, False])
@pytest.mark.parametrize("apart", [1.0, 1e-3, 2e-5])
def test_rewards_that_differ_a_little_are_compared_as_any_others(apart: float, *, normalize_std: bool) -> None:
    reward_B = torch.tensor([0.5, 0.5 + apart, 0.25, 0.25, 0.1, 0.1, 0.1], dtype=torch.float64)
    advantage_B = group_advantage(reward_B, torch.tensor([0, 0, 1, 1, 2, 2, 2]), normalize_std=normalize_std)
    size = 1.0 if normalize_std else apart / 2
    assert advantage_B.tolist() == pytest.approx([-size, size, 0, 0, 0, 0, 0], rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("normalize_std", [True, False])
def test_equal_rewards_have_no_advantage_whatever_their_mean_is_rounded_to(normalize_std: bool) -> None:
    for size in range(2, 12):
        for tenths in range(-20, 21):
            reward_B = torch.full((size,), tenths / 10)
            group_B = torch.zeros(size, dtype=torch.int64)
            assert not group_advantage(reward_B, group_B, normalize_std=normalize_std).any()
