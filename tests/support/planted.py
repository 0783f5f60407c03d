"""Collapses planted into runs of bundled models; ``benchmarks/guards.py`` measures how soon the guards see them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from opd.models.language import LanguageModel
from opd.signals import FullSignal
from opd.types import Rollout
from support.ruined_runs import Scenario, no_end, repetition


def scrambled(student: LanguageModel, rollouts: Sequence[Rollout], signal: FullSignal) -> FullSignal:
    """The teacher's hidden states are permuted."""
    width = signal.hidden_TD.shape[1]
    order_D = torch.randperm(width, generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(signal, hidden_TD=signal.hidden_TD[:, order_D])


@torch.no_grad()
def layer_of_zeros(student: LanguageModel, rollouts: Sequence[Rollout], signal: FullSignal) -> FullSignal:
    """The weights of the student's second layer are zero."""
    for parameter in student.model.get_submodule("model.layers.1").parameters():
        parameter.zero_()
    return signal


@torch.no_grad()
def noise(student: LanguageModel, rollouts: Sequence[Rollout], signal: FullSignal) -> FullSignal:
    """Noise is added to every weight of the student."""
    generator = torch.Generator().manual_seed(len(signal))
    for parameter in student.model.parameters():
        size = 0.1 * float(parameter.std()) if parameter.numel() > 1 else 0.1
        parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return signal


def wrong_sign(student: LanguageModel, rollouts: Sequence[Rollout], signal: FullSignal) -> FullSignal:
    """From now on the gradient has the wrong sign."""
    for parameter in student.model.parameters():
        parameter.register_hook(torch.neg)
    return signal


SHORT = {"optimizer.steps": 40}
LONGER = {**SHORT, "rollout.max_new_tokens": 128, "eval.max_new_tokens": 128}
LIVE: dict[str, Any] = {"teacher.weights": "live", "loss.anchor": 0.0, "optimizer.steps": 50}

PLANTED = {
    "the teacher's states are scrambled": Scenario("opd", SHORT, scrambled, first=0),
    "weight decay of 50": Scenario("opd", {**SHORT, "optimizer.weight_decay": 50.0}),
    "a layer of zeros": Scenario("opd", SHORT, layer_of_zeros, first=12, last=12),
    "noise on the weights": Scenario("opd", SHORT, noise, first=10),
    "the gradient's sign": Scenario("opd", SHORT, wrong_sign, first=15, last=15),
    "rollouts at temperature 4": Scenario("opd", {**SHORT, "rollout.temperature": 4.0}),
    "a fast average, no anchor": Scenario("hint", {**LIVE, "teacher.weights": {"type": "ema", "decay": 0.05}}),
    "a biased teacher": Scenario("opd", {**SHORT, "teacher.model": "nano/math-biased"}),
    "grpo, learning rate × 20": Scenario("grpo", {**SHORT, "optimizer.lr": 6e-3}),
    "live teacher, no anchor": Scenario("hint", LIVE),
    "learning rate × 100": Scenario("opd", {**SHORT, "optimizer.lr": 0.3}),
    "the teacher rewards repetition": Scenario("opd", {**LONGER, "loss.divergence": "jsd"}, repetition),
    "the teacher wants no end": Scenario("opd", LONGER, no_end),
}
"""Ten of them by hand, three of ``docs/recovery.md``; each of those with wrong numbers ends by the guard for these."""
