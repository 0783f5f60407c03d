"""Rollouts that servers write while the student is updated: one update older, each used once, in every checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

import opd
from opd.config.read import read
from opd.data.curriculum import Uniform
from opd.errors import ConfigError, OpdError
from opd.loop import Loop
from opd.models.loading import load
from opd.rollouts.ahead import Ahead
from opd.servers.rollouts import VllmEngine
from opd.training.actions import RollBack
from opd.types import Event, Prompt, Rollout, Span
from support.models import make_model
from support.rollout_server import RolloutServer
from support.served import Teacher
from support.small_runs import PROMPTS, small_run

STEPS = 5


@pytest.fixture
def server() -> Iterator[RolloutServer]:
    with RolloutServer(make_model(0)) as running:
        yield running


class Noted:
    """The rollouts that each step trained on, and the labels of the weights that wrote them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used: list[tuple[int, str, list[tuple[int, ...]]]] = []
        rollout = Ahead.rollout

        def noted(source: Ahead, prompts: Sequence[Prompt], seed: int, step: int = 0) -> Sequence[Rollout]:
            label = source.asked.label if source.asked else "now"
            found = rollout(source, prompts, seed, step)
            self.used.append((step, label.rpartition("-")[2], [one.completion_ids for one in found]))
            return found

        monkeypatch.setattr(Ahead, "rollout", noted)


def train(
    out: Path, server: RolloutServer, *, given: bool = True, resume: bool = False, callbacks: Any = (), **keys: Any
) -> bytes:
    tree = small_run(out)
    engine = {"type": "vllm", "url": server.url, "wait": 5}
    tree["rollout"] = {**tree["rollout"], "ahead": 1, "engine": engine, **keys.pop("rollout", {})}
    usual = {"optimizer": {"lr": 1e-2, "steps": STEPS}, "report": None, "checkpoint": {"every": 1}}
    tree = {**tree, **usual, **keys}
    teacher = make_model(1, layers=3, hidden=48) if given else None
    opd.train(tree, student=make_model(0), teacher=teacher, prompts=PROMPTS, resume=resume, callbacks=callbacks)
    return (out / "model.safetensors").read_bytes()


def test_each_step_trains_on_rollouts_of_weights_one_update_older(
    server: RolloutServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = Noted(monkeypatch)
    train(tmp_path / "out", server)
    assert [step for step, *_ in noted.used] == list(range(STEPS))
    # Step 0 is written with the first push, and step 1 too; step 4 with the weights after three updates.
    assert [label for _, label, _ in noted.used] == ["now", "1", "2", "3", "4"]
    assert server.seen.count("/collective_rpc") == STEPS - 1


def test_prompts_and_seeds_are_those_of_a_run_without(server: RolloutServer, tmp_path: Path) -> None:
    tokens = []
    for ahead in (1, 0):
        keys: dict[str, Any] = {"rollout": {"ahead": ahead}, "optimizer": {"lr": 1e-12, "steps": 3}}
        train(tmp_path / str(ahead), server, **keys)
        lines = map(json.loads, (tmp_path / str(ahead) / "metrics.jsonl").read_text().splitlines())
        tokens.append([line["train"]["loss"] for line in lines if "train" in line])
    assert tokens[0] == pytest.approx(tokens[1], rel=1e-5)


class Killed(Exception):
    """Stands for the end of the process."""


class Kill:
    """Ends a run after a step, before its checkpoint is written, as a kill does at its worst."""

    def __init__(self, after: int) -> None:
        self.after = after

    def step(self, step: int, metrics: Any) -> None:
        if step == self.after:
            raise Killed


@pytest.mark.parametrize("every", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_trains_on_the_same_tokens(
    every: int, server: RolloutServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = Noted(monkeypatch)
    keys: dict[str, Any] = {"loss": {"divergence": "reverse_kl", "signal": "sampled"}, "checkpoint": {"every": every}}
    whole = train(tmp_path / "whole", server, **keys)
    expected = [(step, ids) for step, _, ids in noted.used]
    noted.used.clear()
    for after in (2, 3, 4):
        server.restart()  # it comes back with other weights, and is given the right ones
        with pytest.raises(Killed):
            train(tmp_path / "out", server, resume=True, callbacks=[Kill(after)], **keys)
    assert train(tmp_path / "out", server, resume=True, **keys) == whole
    last = {step: ids for step, _, ids in noted.used}
    assert sorted(last.items()) == expected
    for step, _, ids in noted.used:
        assert ids == expected[step][1]


@pytest.mark.slow
def test_after_a_rollback_no_rollout_of_the_weights_that_were_left_is_used(
    server: RolloutServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[int, str]] = []
    wait, step_of = Ahead._wait, Loop._step

    def noted(source: Ahead) -> Sequence[Rollout]:
        assert source.asked
        used.append((source.asked.step, source.asked.label.rpartition("-")[2]))
        return wait(source)

    def step(loop: Loop, number: int) -> Any:
        metrics = step_of(loop, number)
        if number == 2:  # the rollouts of step 3 are on their way
            loop._act(RollBack(1, "half the learning rate", lr_scale=0.5))
        return metrics

    monkeypatch.setattr(Ahead, "_wait", noted)
    monkeypatch.setattr(Loop, "_step", step)
    train(tmp_path / "out", server, checkpoint={"every": 1, "keep": 3})
    pushes = dict(used)  # the last time that each step's were waited for
    assert [*pushes] == list(range(STEPS))
    # Step 3 was asked for with the third push, dropped, and asked for again with the fourth, the rollback.
    assert [*pushes.values()] == ["1", "1", "2", "4", "4"]
    assert '"kind": "rollback"' in (tmp_path / "out" / "metrics.jsonl").read_text()


def test_served_teachers_are_asked_while_rollouts_are_written_ahead(server: RolloutServer, tmp_path: Path) -> None:
    """The teacher's states come with the rollouts; local ones give the same weights, but for their rounding."""
    make_model(1, layers=3, hidden=48).save(tmp_path / "teacher")
    losses = []
    with Teacher({"t": load(str(tmp_path / "teacher"), key="t")}) as teacher:
        for name, served in (("local", None), ("served", {"url": teacher.url, "states": "float32", "sequences": 2})):
            keys: dict[str, Any] = {"teacher": {"model": str(tmp_path / "teacher"), "served": served}}
            train(tmp_path / name, server, given=False, **keys)
            lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
            losses.append([line["train"]["loss"] for line in lines if "train" in line])
        assert teacher.asked.count("/pooling") == STEPS * 4 + 1  # eight rollouts by two, and the probe of the start
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_rollouts_in_a_checkpoint_are_read_back_as_they_were(server: RolloutServer, tmp_path: Path) -> None:
    prompts = [Prompt(id=name, text=name, data={"odd": object()}) for name in "ab"]
    plain = Rollout(prompts[0], (1, 2), (3, 4), (True, True), (-0.1, -1 / 3), (Span(0, 2),), "stop")
    told = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"x": (1, 2)}}]}
    rich = dataclasses.replace(
        plain,
        prompt=prompts[1],
        completion_mask=(True, False),
        logprobs=(-1e-7, math.nan),
        events=(Event("unknown_tool", 0, Span(0, 1), {"tool": "g"}),),
        reward=0.1,
        correct=False,
        rewards={"task": 0.1, "judge": None},
        transcript=(MappingProxyType(told),),
    )
    engine = VllmEngine(make_model(0), url=[server.url], folder=tmp_path)
    curriculum = Uniform(prompts, batch=2, samples=1, seed=0)
    written = [{"a": plain, "b": rich}[prompt.id] for prompt in curriculum.step(1)]
    source = SimpleNamespace(rollout=lambda prompts, seed, step: written)
    first, second = (Ahead(source, engine, curriculum, 3) for _ in range(2))
    first.rollout(curriculum.step(0), 0, 0)
    second.load(first.tensors())
    read = second.rollout(curriculum.step(1), 1, 1)
    for one, other in zip(read, written, strict=True):
        assert one.prompt is other.prompt
        assert repr(one).replace("[1, 2]", "(1, 2)") == repr(other).replace("mappingproxy(", "").replace("}]})", "}]}")
    assert second.tensors()
    second.rollout(curriculum.step(2), 2, 2)
    assert not second.tensors()  # nothing is asked for beyond the last step


@pytest.mark.slow
def test_a_server_that_is_gone_ends_the_run_with_its_sentence_and_the_checkpoint_stands(
    server: RolloutServer, tmp_path: Path
) -> None:
    class Gone:
        def step(self, step: int, metrics: Any) -> None:
            if step == 2:
                server.faults.extend(["503"] * 1000)

    engine = {"type": "vllm", "url": server.url, "wait": 0.5}
    with pytest.raises(OpdError, match=r"rollout\.engine\.url: .* has given no right answer for 0\.5 s"):
        train(tmp_path / "out", server, callbacks=[Gone()], rollout={"engine": engine})
    server.faults.clear()
    assert train(tmp_path / "out", server, resume=True, rollout={"engine": engine})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "rollout.ahead needs rollouts by servers"),
        ({"rollout.engine": {"vllm": "http://a"}, "experimental.curriculum": {}}, "prompts that depend on the step"),
        (
            {"rollout.engine": {"vllm": "http://a"}, "rollout.source": "mixture"},
            "rollout.ahead needs the student's own",
        ),
        (
            {"rollout.engine": {"vllm": "http://a"}, "loss.signal": {"type": "sampled", "estimator": "k2"}},
            "rollout.ahead needs a loss that weighs tokens of older weights",
        ),
        ({"rollout.engine": {"vllm": "http://a"}, "rollout.ahead": 2}, "ahead"),
    ],
)
def test_what_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read("opd", {"rollout.ahead": 1, **keys})
