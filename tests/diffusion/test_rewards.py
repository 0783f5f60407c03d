"""Rewards: a user's own task, the policy gradient, the reward's gradient, and evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import opd
from opd.axes.base import Objects
from opd.diffusion.divergences import log_density
from opd.diffusion.objectives import RewardGradient
from opd.diffusion.run import DenoisingRun
from opd.diffusion.types import RewardSignal, TransitionSignal
from opd.errors import EmptyStepError
from opd.loop import Loop
from opd.output.run_log import RunLog
from opd.types import Rollout, Scored
from support.families import read_denoising
from support.tiny_pipelines import run_tree

TASK = '''
import torch
from opd.types import Prompt


class Bright:
    """Rewards bright images; every image of the prompt 'red' has the same reward."""

    def prompts(self, split):
        words = ["red", "green", "blue", "circle"] if split == "train" else ["cross", "square"]
        return [Prompt(id=f"{split}/{word}", text=word, domain=word) for word in words]

    def right(self, images_BX, prompts):
        return (images_BX.mean((1, 2, 3)) > 0).float()

    def reward(self, images_BX, prompts):
        flat_B = torch.tensor([p.text == "red" for p in prompts])
        return torch.where(flat_B, 0.5, images_BX.mean((1, 2, 3)))

    def distance(self, images_BX, prompts):
        return float(images_BX.var())


class Flat(Bright):
    def reward(self, images_BX, prompts):
        return torch.zeros(len(prompts))


ready = Bright()
'''


@pytest.fixture(autouse=True)
def _task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bright_task.py").write_text(TASK)
    monkeypatch.syspath_prepend(tmp_path)


def tree_of(out: Path, folder: Any, kind: str = "sd3", **changes: Any) -> dict[str, Any]:
    tree = run_tree(
        out,
        folder(kind),
        prompts={"task": "bright_task:Bright"},
        loss={"signal": "reward"},
        rollout={"noise": 0.7, "rollouts_per_prompt": 3, "prompts_per_step": 2},
        **changes,
    )
    tree["teacher"] = {}
    return tree


def loop_of(tree: dict[str, Any], tmp_path: Path) -> tuple[DenoisingRun, Loop]:
    run = DenoisingRun.load(read_denoising(tree), Objects())
    return run, run.assemble(RunLog(tmp_path / "metrics.jsonl", [], []))


def scored(loop: Loop, step: int = 0) -> tuple[Sequence[Rollout], dict[str, Scored]]:
    rollouts = loop.sampler.rollout(loop.curriculum.step(step), 0, step)
    return rollouts, {said.term.name: said for said in loop.score(rollouts)}


def train_rows(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["train"] for row in rows if "train" in row]


# ------------------------------------------------------------------------------------------------------ policy gradient


@pytest.mark.parametrize("name", ["bright_task:Bright", "bright_task:ready"])
def test_a_users_own_task_rewards_the_images(tmp_path: Path, folder: Any, name: str) -> None:
    run, loop = loop_of({**tree_of(tmp_path / "out", folder), "prompts": {"task": name, "limit": 2}}, tmp_path)
    assert [p.id for p in run.prompts] == ["train/red", "train/green"]
    rollouts, _ = scored(loop)
    assert len(rollouts) == 6
    for rollout in rollouts:
        mean = run.student.decode(rollout.latents_KX[-1][None]).mean()  # type: ignore[attr-defined]
        expected = 0.5 if rollout.prompt.text == "red" else float(mean)
        assert rollout.reward == pytest.approx(expected, abs=1e-6)


def densities(loop: Loop, rollouts: Sequence[Rollout], said: Scored) -> Tensor:
    """The log-density of each trajectory under the current student."""
    signal = said.signal
    assert isinstance(signal, TransitionSignal)
    with torch.no_grad():
        ((_, states),) = loop.forward(rollouts)
    prediction_TX = states.prediction_TX  # type: ignore[attr-defined]
    schedule = said.term.objective.schedule  # type: ignore[attr-defined]
    each_T = log_density(schedule, signal.step_T, signal.state_TX, prediction_TX, signal.next_TX)
    return torch.zeros(len(rollouts)).index_add(0, signal.rollout_T, each_T)


@pytest.mark.parametrize("kind", ["sd3"])
def test_the_policy_gradient_raises_the_density_of_a_better_trajectory(tmp_path: Path, folder: Any, kind: str) -> None:
    run, loop = loop_of(tree_of(tmp_path / "out", folder, kind), tmp_path)
    rollouts, said = scored(loop)
    term = said["policy_gradient"]
    assert isinstance(term.signal, TransitionSignal)
    alone = replace(term.signal, advantage_T=(term.signal.rollout_T == 4).float())
    before_B = densities(loop, rollouts, term)
    ((_, states),) = loop.forward(rollouts)
    loss = term.term.objective(states, alone, term.weight_T)
    assert loss.item() == pytest.approx(-1 / 6, rel=1e-3)  # r = 1: the weight of one trajectory of six
    loss.backward()
    with torch.no_grad():
        norm = sum(p.grad.square().sum() for p in run.student.model.parameters() if p.grad is not None) ** 0.5
        for p in run.student.model.parameters():
            if p.grad is not None:
                p -= 1e-3 / norm * p.grad
    gain_B = densities(loop, rollouts, term) - before_B
    assert gain_B[4] > 0.01
    assert gain_B[4] == gain_B.max()


def test_advantages_compare_trajectories_of_one_prompt(tmp_path: Path, folder: Any) -> None:
    _, loop = loop_of(tree_of(tmp_path / "out", folder), tmp_path)
    step = next(n for n in range(4) if "red" not in {p.text for p in loop.curriculum.step(n)})
    rollouts, said = scored(loop, step)
    signal = said["policy_gradient"].signal
    assert isinstance(signal, TransitionSignal)
    assert len(signal) == 18
    for group in (range(3), range(3, 6)):
        rewards = torch.tensor([rollouts[i].reward for i in group])
        each = torch.stack([signal.advantage_T[signal.rollout_T == i].unique() for i in group]).flatten()
        torch.testing.assert_close(each.argsort(), rewards.argsort())
        assert abs(float(each.mean())) < 1e-4


def test_a_step_of_equal_rewards_makes_no_update(tmp_path: Path, folder: Any) -> None:
    tree = tree_of(tmp_path / "out", folder, optimizer={"steps": 4})
    result = opd.train(tree, {"rollout.prompts_per_step": 1})
    assert result.steps == 4
    assert [event["kind"] for event in result.events] == ["idle"]  # where 'red' was drawn
    norms = ["grad_norm" in row for row in train_rows(result.out)]
    assert sorted(norms) == [False, True, True, True]


def test_a_run_of_equal_rewards_alone_is_an_error(tmp_path: Path, folder: Any) -> None:
    tree = {**tree_of(tmp_path / "out", folder), "prompts": {"task": "bright_task:Flat"}}
    with pytest.raises(EmptyStepError, match="the rewards were equal in every group"):
        opd.train(tree)


@pytest.mark.parametrize(
    ("kind", "rollout", "weights"),
    [
        ("sd3", {"noise": 0.7}, None),
        ("sd3", {"renoise": True, "noise": 0.0}, [1.0, 1.0, 0.0]),
        ("sd", {"noise": 1.0}, [1.0, 1.0, 0.0]),
    ],
)
def test_rewards_train_every_noisy_sampler(
    tmp_path: Path, folder: Any, kind: str, rollout: dict[str, Any], weights: list[float] | None
) -> None:
    tree = tree_of(tmp_path / "out", folder, kind)
    tree["rollout"] |= rollout
    tree["loss"] |= {"step_weights": weights, "anchor": 0.1, "divergence": "transition_kl"}
    result = opd.train(tree)
    for row in train_rows(result.out):
        assert row["grad_norm"] > 0
        assert {"policy_gradient", "anchor", "reward", "spread"} <= row.keys()
    assert result.tokens == 2 * 6 * (3 if weights is None else 2)


# -------------------------------------------------------------------------------------------------- its own gradient


def test_the_reward_gradient_flows_through_the_denoised_mean(tmp_path: Path, folder: Any) -> None:
    tree = tree_of(tmp_path / "out", folder)
    tree["loss"] |= {"reward_gradient": {"weight": 2.0, "steps": 2}}
    run, loop = loop_of(tree, tmp_path)
    rollouts, said = scored(loop)
    term = said["reward_gradient"]
    signal = term.signal
    assert isinstance(signal, RewardSignal)
    assert isinstance(term.term.objective, RewardGradient)
    assert term.term.weight == 2.0
    assert set(signal.position_T.tolist()) == {1, 2}
    ((where, states),) = loop.forward(rollouts)
    states = states.take(where.position_T > 0)
    prediction_TX = states.prediction_TX.detach().requires_grad_()  # type: ignore[attr-defined]
    loss = term.term.objective(type(states)(prediction_TX), signal, term.weight_T)  # type: ignore[call-arg]
    loss.backward()
    clean_TX = run.samplers.schedule.denoised(signal.step_T, signal.state_TX, prediction_TX.detach())
    flat_T = torch.tensor([rollouts[r].prompt.text == "red" for r in signal.rollout_T.tolist()])
    reward_T = torch.where(flat_T, 0.5, clean_TX.mean((1, 2, 3)))
    assert loss.item() == pytest.approx(-float(reward_T @ term.weight_T), rel=1e-5)
    # x̂0 = x − σ v, and the mean is over 192 dimensions
    level_T = run.samplers.schedule.level_K[signal.step_T].float()
    expected_T = torch.where(flat_T, 0.0, term.weight_T * level_T / 192)
    torch.testing.assert_close(prediction_TX.grad, expected_T.view(-1, 1, 1, 1).expand_as(prediction_TX))


@pytest.mark.parametrize("kind", ["sd3", "sd"])
def test_a_differentiable_reward_rises(tmp_path: Path, folder: Any, kind: str) -> None:
    tree = run_tree(
        tmp_path / "out",
        folder(kind),
        teacher={"model": folder(kind)},
        prompts={"task": "bright_task:Bright"},
        loss={"reward_gradient": 10.0},
        optimizer={"steps": 8, "lr": 1e-2},
    )
    rows = train_rows(opd.train(tree).out)
    assert rows[0]["distill"] < 1e-9  # the teacher is the student, so this gradient is the reward's alone
    assert rows[0]["grad_norm"] > 0
    if kind == "sd3":  # an untrained autoencoder's images hardly change
        assert rows[-1]["reward"] > rows[0]["reward"] + 0.02
        assert rows[-1]["reward_gradient"] < rows[0]["reward_gradient"]


# ----------------------------------------------------------------------------------------------------- what is measured


def test_held_out_images_of_student_and_teacher_are_judged(tmp_path: Path, folder: Any) -> None:
    tree = run_tree(
        tmp_path / "out",
        folder("sd3"),
        teacher={"model": folder("sd3", 1)},
        prompts={"task": "bright_task:Bright"},
        eval={"prompts": {"task": "bright_task:Bright", "split": "test"}, "images_per_prompt": 3, "steps": 2},
    )
    result = opd.train(tree)
    for metrics in (result.before, result.after):
        assert {"accuracy", "accuracy/cross", "frechet", "teacher_accuracy", "teacher_frechet"} <= metrics.keys()
        assert 0 <= metrics["accuracy"] <= 1
    assert result.before["teacher_frechet"] == result.after["teacher_frechet"]
    assert result.before["frechet"] != result.after["frechet"]


def test_without_a_judge_the_distance_to_the_teacher_is_measured(tmp_path: Path, folder: Any) -> None:
    """The mean is over the trained states only."""
    held_out = {"path": run_tree(tmp_path / "held", "s")["prompts"]["path"]}

    def before(**loss: Any) -> float:
        tree = run_tree(tmp_path / "out", folder("sd3"), teacher={"model": folder("sd3", 1)}, loss=loss)
        run = DenoisingRun.load(read_denoising(tree | {"eval": {"prompts": held_out}}), Objects())
        measure = run.evaluation(run.terms()[0])
        assert measure is not None
        return measure()["distance"]

    each = [before(step_weights=[float(k == n) for k in range(3)]) for n in range(3)]
    assert before() == pytest.approx(sum(each) / 3, rel=1e-4)
