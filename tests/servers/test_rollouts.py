"""Rollouts by servers: the right weights, the right log-probabilities, and nobody waits for another's turn."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import opd
from opd.axes.engines.vllm import Vllm
from opd.config.read import read
from opd.engines.hf import HFEngine
from opd.errors import ConfigError, ModelError, OpdError
from opd.models.language import LanguageModel
from opd.servers.rollouts import VllmEngine
from opd.types import Generation, Sampling
from support.families import read_language
from support.models import make_model
from support.rollout_server import RolloutServer
from support.small_runs import PROMPTS, small_run

CONTEXTS = [(5, 6, 7), (8, 9), (10, 11, 12, 13)]


@pytest.fixture
def server() -> Iterator[RolloutServer]:
    with RolloutServer(make_model(0)) as running:
        yield running


def engine(model: LanguageModel, out: Path, *servers: RolloutServer, **settings: Any) -> VllmEngine:
    urls = {"url": [one.url for one in servers], "wait": 5, "timeout": 5, **settings}
    return VllmEngine(model, folder=out / "pushed", **urls)


def written(by: VllmEngine, seed: int = 3, **sampling: Any) -> list[Generation]:
    chosen = Sampling(**sampling)
    return by.generate(CONTEXTS, [6, 5, 4], sampling=chosen, stop_ids=frozenset({2}), seed=seed)


def changed(model: LanguageModel) -> LanguageModel:
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(0.05)
    return model


def test_tokens_and_log_probabilities_are_those_of_the_present_weights(server: RolloutServer, tmp_path: Path) -> None:
    model = make_model(0)
    by = engine(model, tmp_path, server)
    by.sync()
    first = written(by)
    assert written(by) == first
    assert written(by, seed=4) != first
    greedy = written(by, temperature=0.0)
    changed(model)
    by.sync()
    after = written(by, temperature=0.0)
    assert after != greedy
    local = HFEngine(model).generate(
        CONTEXTS, [6, 5, 4], sampling=Sampling(temperature=0), stop_ids=frozenset({2}), seed=0
    )
    assert [one.ids for one in after] == [one.ids for one in local]
    for one, other in zip(after, local, strict=True):
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=0)
    assert server.seen.count("/collective_rpc") == 2
    by.sync()
    assert server.seen.count("/collective_rpc") == 2


def test_only_the_last_two_pushes_stay_on_disk(server: RolloutServer, tmp_path: Path) -> None:
    model = make_model(0)
    by = engine(model, tmp_path, server)
    for _ in range(4):
        by.sync()
        changed(model)
    assert len(list((tmp_path / "pushed").iterdir())) == 2


@pytest.mark.slow
def test_a_server_that_restarts_gets_the_weights_again(server: RolloutServer, tmp_path: Path) -> None:
    by = engine(changed(make_model(0)), tmp_path, server)
    by.sync()
    right = written(by)
    server.restart()
    assert written(by) == right
    assert any("it wrote with the weights default" in fault for fault in by.requests.faults)


@pytest.mark.parametrize("fault", ["503", "cut", "missing", "other"])
@pytest.mark.slow
def test_a_wrong_answer_is_asked_for_again(fault: str, server: RolloutServer, tmp_path: Path) -> None:
    by = engine(make_model(0), tmp_path, server)
    by.sync()
    right = written(by)
    server.faults.extend([fault, "", fault])
    assert written(by) == right


@pytest.mark.slow
def test_half_a_push_is_seen_and_repeated(server: RolloutServer, tmp_path: Path) -> None:
    model = make_model(0)
    by = engine(model, tmp_path, server)
    by.sync()
    with torch.no_grad():
        next(iter(model.model.parameters())).mul_(-1)
    server.half = True
    by.sync()
    assert any("nats from the run's own" in fault for fault in by.requests.faults)
    assert server.seen.count("/collective_rpc") == 3


def test_raw_log_probabilities_are_refused(tmp_path: Path) -> None:
    with RolloutServer(make_model(0), raw=True) as raw:
        by = engine(make_model(0), tmp_path, raw)
        with pytest.raises(ModelError, match="--logprobs-mode processed_logprobs"):
            by.sync()


def test_a_server_without_development_routes_is_refused(tmp_path: Path) -> None:
    with RolloutServer(make_model(0), dev=False) as closed:
        by = engine(make_model(0), tmp_path, closed)
        with pytest.raises(ModelError, match="VLLM_SERVER_DEV_MODE=1"):
            by.sync()


def test_another_server_takes_over(tmp_path: Path) -> None:
    model = make_model(0)
    with RolloutServer(model) as one:
        other = RolloutServer(model)
        by = engine(copy.deepcopy(model), tmp_path, one, other)
        by.sync()
        right = written(by)
        other.stop()
        assert written(by) == right


def test_padded_rows_are_never_asked_for(tmp_path: Path) -> None:
    model = make_model(0, vocab=64)
    with RolloutServer(model) as padded:
        by = engine(model, tmp_path, padded)
        assert sorted(map(int, by.bias)) == list(range(31, 64))


@pytest.mark.parametrize("given", [{"vllm": "http://a"}, {"vllm": ["http://a"]}, {"type": "vllm", "url": "http://a"}])
def test_ways_to_write_it(given: Any) -> None:
    chosen = read_language("opd", {"rollout.engine": given}).rollout.engine
    assert isinstance(chosen, Vllm)
    assert chosen.url == ("http://a",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("vllm", "url"),
        ({"vllm": "a"}, "no address of a server"),
        ({"vllm": {"url": "http://a"}}, "Fix: write {type: vllm, url}"),
        ({"type": "vllm", "url": "http://a", "push": "nccl"}, "folder"),
    ],
)
def test_what_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read("opd", {"rollout.engine": given})


def test_a_server_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OpdError, match=r"rollout\.engine\.url: no answer from 'http://127\.0\.0\.1:1'"):
        VllmEngine(make_model(0), url=["http://127.0.0.1:1"], folder=tmp_path)


def test_a_run_rolls_out_and_trains(server: RolloutServer, tmp_path: Path) -> None:
    tree = small_run(tmp_path / "out", optimizer={"lr": 1e-2, "steps": 2})
    tree["rollout"] = {**tree["rollout"], "engine": {"type": "vllm", "url": server.url, "wait": 5}}
    result = opd.train(
        {**tree, "report": None},
        student=dataclasses.replace(make_model(0)),
        teacher=make_model(1, layers=3, hidden=48),
        prompts=PROMPTS,
    )
    assert result.steps == 2
    assert server.seen.count("/collective_rpc") == 2
    assert '"push_s"' in (tmp_path / "out" / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_slow_row_holds_no_other_row_up(server: RolloutServer, tmp_path: Path) -> None:
    by = engine(make_model(0), tmp_path, server)
    by.sync()
    server.count, server.delays = 0, {1: 1.0}
    order: list[int] = []
    left = [2, 2, 2]

    class Noted(dict[int, Generation]):
        def __setitem__(self, row: int, generation: Generation) -> None:
            order.append(row)

    def go_on(row: int) -> tuple[tuple[int, ...], int] | None:
        left[row] -= 1
        return (CONTEXTS[row], 3) if left[row] else None

    sampling = Sampling()
    by.generate(CONTEXTS, [3] * 3, sampling=sampling, stop_ids=frozenset(), seed=1, done=Noted(), go_on=go_on)
    slow = next(row for row in range(3) if order.index(row) == 4)
    assert sorted(order) == [0, 0, 1, 1, 2, 2]
    assert order[4:] == [slow, slow]
