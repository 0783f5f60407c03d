"""Runs that learn from rewards alone: what becomes of batches in which all rewards are equal, and of their figures."""

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
from opd.output.format import figure
from opd.types import Message, Observation, Prompt, Rollout
from support.models import make_model

PROMPTS = [Prompt(id=a, messages=({"role": "user", "content": a},), data={"first": a}) for a in "abcdefgh"]


class Checker:
    """A task whose rewards are replaced by those of ``Rewards``."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        return PROMPTS

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        return Observation(reward=0.0)


class Rewards:
    """A display that gives each rollout of the run a reward by its number."""

    def __init__(self, reward: Callable[[int], float]) -> None:
        self.reward = reward
        self.number = itertools.count()

    def start(self, loop: Loop) -> None:
        self.sampler, loop.sampler = loop.sampler, self

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Rollout]:
        made = self.sampler.rollout(prompts, seed, step)
        return [dataclasses.replace(r, reward=self.reward(next(self.number))) for r in made]

    def step(self, step: int, metrics: dict[str, float]) -> None: ...

    def evaluation(self, step: int, metrics: dict[str, float]) -> None: ...

    def event(self, step: int, kind: str, text: str) -> None: ...

    def stop(self) -> None: ...


def train(out: Path, reward: Callable[[int], float], **loss: Any) -> tuple[opd.Result, list[dict[str, float]]]:
    """Batches of eight answers, two each to four prompts."""
    tree = {
        "student": "s",
        "prompts": {"path": "p.jsonl"},
        "loss": {"signal": "reward", **loss},
        "rollout": {"batch": 4, "samples": 2, "max_new_tokens": 6},
        "optimizer": {"lr": 1e-3, "steps": 6},
        "guards": {"max_idle": 3},
        "log": [],
        "out": str(out),
    }
    result = opd.train(tree, student=make_model(0), prompts=PROMPTS, task=Checker(), displays=[Rewards(reward)])
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return result, [row["train"] for row in rows if "train" in row]


def late(number: int) -> float:
    """Nothing to tell apart in the first two batches and in the last but one."""
    return float(number % 2) if number >= 16 and number // 8 != 4 else 0.0


@pytest.mark.parametrize("anchor", [0.0, 0.1])
def test_a_batch_of_equal_rewards_makes_no_update_and_ends_nothing(anchor: float, tmp_path: Path) -> None:
    result, rows = train(tmp_path / "run", late, anchor=anchor)
    assert result.steps == 6
    assert result.stopped_by is None
    assert [row["equal_groups"] for row in rows] == [1, 1, 0, 0, 1, 0]
    idle = [event["step"] for event in result.events if event["kind"] == "idle"]
    # Once there was something to learn, an anchor has something to hold.
    assert idle == ([0, 1] if anchor else [0, 1, 4])
    assert ["loss" in row for row in rows] == [n not in idle for n in range(6)]


@pytest.mark.parametrize("anchor", [0.0, 0.1])
def test_a_run_that_never_has_anything_to_learn_is_an_error(anchor: float, tmp_path: Path) -> None:
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
        train(tmp_path / str(skip), reward, sampled={"skip_equal": skip}) for skip in (False, True)
    )
    assert diluted[0]["equal_groups"] == alone[0]["equal_groups"] == 0.75
    assert diluted[0]["outcome_share"] == 1
    share = alone[0]["outcome_share"]
    assert 0 < share < 0.6
    assert alone[0]["grad_norm"] * share == pytest.approx(diluted[0]["grad_norm"], rel=1e-3)


def test_the_share_is_shown_in_percent() -> None:
    assert figure("equal_groups", 0.75) == "75.0%"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"loss.sampled.skip_equal": True}, "sampled.skip_equal is about the outcome reward, and there is none"),
        ({"loss.sampled.overlong": 8}, "sampled.overlong is about the outcome reward"),
        (
            {"loss.sampled.overlong": 65, "loss.outcome": 1.0, "rollout.samples": 2},
            "overlong=65 are the last of rollout.max_new_tokens=64",
        ),
    ],
)
def test_what_does_not_fit_is_refused(overrides: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        opd.train("tml", {**overrides, "out": str(tmp_path / "run")})


def test_the_outcome_beside_a_teacher_is_averaged_as_the_run_file_says(tmp_path: Path) -> None:
    small = {"optimizer.steps": 1, "eval.prompts.limit": 8, "log": [], "rollout.batch": 8, "rollout.samples": 4}
    shapes = {
        "token": {},
        "constant": {"loss.positions.mean": "constant"},
        "sequence": {"loss.positions.mean": "sequence"},
    }
    losses = {}
    for name, shape in shapes.items():
        opd.train("kdrl", {**small, **shape, "out": str(tmp_path / name)})
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = next(row["train"]["outcome"] for row in rows if "train" in row)
    assert len(set(losses.values())) == 3
