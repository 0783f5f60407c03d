"""Runs that learn from rewards alone: batches whose rewards are all equal, and the metrics of such runs."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import opd
from opd.errors import ConfigError, EmptyStepError
from opd.loop import Loop
from opd.output.format import format_value
from opd.types import Message, Observation, Prompt, Rollout, RolloutSource
from support.altered import train_altered
from support.models import make_model

PROMPTS = [Prompt(id=a, messages=({"role": "user", "content": a},), data={"first": a}) for a in "abcdefgh"]


class Checker:
    """A task whose rewards are replaced by those of ``Rewards``."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        return PROMPTS

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        return Observation(reward=0.0)


class Rewards:
    """A rollout source that gives each rollout of another source a reward by its number."""

    def __init__(self, sampler: RolloutSource, reward: Callable[[int], float]) -> None:
        self.sampler = sampler
        self.reward = reward
        self.number = itertools.count()

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Rollout]:
        made = self.sampler.rollout(prompts, seed, step)
        return [dataclasses.replace(r, reward=self.reward(next(self.number))) for r in made]


def train(
    out: Path, reward: Callable[[int], float], shape: dict[str, Any] | None = None, **loss: Any
) -> tuple[opd.Result, list[dict[str, float]]]:
    """Batches of eight answers, two each to four prompts."""
    tree = {
        "student": "s",
        "prompts": {"path": "p.jsonl"},
        "loss": {"signal": {"type": "reward", **(shape or {})}, **loss},
        "rollout": {"prompts_per_step": 4, "rollouts_per_prompt": 2, "max_new_tokens": 6},
        "optimizer": {"lr": 1e-3, "steps": 6},
        "guards": {"max_idle": 3},
        "log": [],
        "out": str(out),
    }

    def alter(loop: Loop) -> Loop:
        return dataclasses.replace(loop, sampler=Rewards(loop.sampler, reward))

    result = train_altered(alter, tree, student=make_model(0), prompts=PROMPTS, task=Checker())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return result, [row["train"] for row in rows if "train" in row]


def late(number: int) -> float:
    """Nothing to tell apart in the first two batches and in the last but one."""
    return float(number % 2) if number >= 16 and number // 8 != 4 else 0.0


@pytest.mark.parametrize("anchor", [0.0, 0.1])
def test_a_batch_of_equal_rewards_makes_no_update_and_the_run_goes_on(anchor: float, tmp_path: Path) -> None:
    result, rows = train(tmp_path / "run", late, anchor=anchor)
    assert result.steps == 6
    assert result.stopped_by is None
    assert [row["equal_groups"] for row in rows] == [1, 1, 0, 0, 1, 0]
    idle = [event["step"] for event in result.events if event["kind"] == "idle"]
    # Once there was something to learn, an anchor has something to hold.
    assert idle == ([0, 1] if anchor else [0, 1, 4])
    assert ["loss" in row for row in rows] == [n not in idle for n in range(6)]


@pytest.mark.parametrize("anchor", [0.0, 0.1])
def test_a_run_whose_rewards_are_always_equal_is_an_error(anchor: float, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(EmptyStepError, match="ended at step 3 without a target"):
        train(out, lambda number: 1.0, anchor=anchor)
    newest = load_file(max((out / "checkpoints").glob("[0-9]*")) / "model.safetensors")
    assert all(torch.equal(newest[n], p) for n, p in make_model(0).model.state_dict().items() if n in newest)


def test_equal_groups_are_left_out_of_the_mean(tmp_path: Path) -> None:
    """Of four groups one has something to teach: alone in the mean, its gradient is about four times as large."""

    def reward(number: int) -> float:
        return float(number % 8 == 1)

    (_, diluted), (_, alone) = (
        train(tmp_path / str(skip), reward, {"drop_zero_variance_groups": skip}) for skip in (False, True)
    )
    assert diluted[0]["equal_groups"] == alone[0]["equal_groups"] == 0.75
    assert diluted[0]["policy_gradient_share"] == 1
    share = alone[0]["policy_gradient_share"]
    assert 0 < share < 0.6
    assert alone[0]["grad_norm"] * share == pytest.approx(diluted[0]["grad_norm"], rel=1e-3)


def test_the_share_is_shown_in_percent() -> None:
    assert format_value("equal_groups", 0.75) == "75.0%"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"loss.signal.drop_zero_variance_groups": True}, "unknown key 'loss.signal.drop_zero_variance_groups'"),
        ({"loss.signal.overlong_penalty": 8}, "unknown key 'loss.signal.overlong_penalty'"),
        (
            {"loss.reward.overlong_penalty": 65, "rollout.rollouts_per_prompt": 2},
            "overlong_penalty=65 is above rollout.max_new_tokens=64",
        ),
    ],
)
def test_reward_settings_without_rewards_are_refused(overrides: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        opd.train("tml", {**overrides, "out": str(tmp_path / "run")})


@pytest.mark.slow
def test_the_reward_term_is_averaged_as_the_run_file_says(tmp_path: Path) -> None:
    small: dict[str, Any] = {
        "optimizer.steps": 1,
        "eval.prompts": None,
        "log": [],
        "rollout.prompts_per_step": 8,
        "rollout.rollouts_per_prompt": 4,
    }
    shapes = {
        "token": {},
        "constant": {"loss.aggregate": "constant"},
        "sequence": {"loss.aggregate": "sequence"},
    }
    losses = {}
    for name, shape in shapes.items():
        opd.train("kdrl", {**small, **shape, "out": str(tmp_path / name)})
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = next(row["train"]["policy_gradient"] for row in rows if "train" in row)
    assert len(set(losses.values())) == 3
