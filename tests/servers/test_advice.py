"""What doctor says about servers: their commands before anything is asked, and what they are."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from opd.api import examine
from opd.errors import OpdError
from opd.models.loading import load
from opd.servers.advice import commands
from support.families import read_language
from support.rollout_server import RolloutServer
from support.served import Teacher


def test_the_commands_of_a_run_file_come_before_its_servers_are_asked(tmp_path: Path) -> None:
    keys = {
        "teacher.served": {"url": "http://127.0.0.1:1", "name": "big"},
        "rollout.engine": {"vllm": "http://127.0.0.1:2"},
        "out": str(tmp_path),
    }
    assert next(examine("opd", keys)).startswith("server    teacher at http://127.0.0.1:1: vllm serve")
    with pytest.raises(OpdError, match=r"teacher\.served\.url: no answer"):
        list(examine("opd", keys))
    text = "\n".join(commands(read_language("opd", keys)))
    assert "--port 1 --served-model-name big --runner pooling --convert embed" in text
    assert "or: opd serve big=nano/math-teacher --port 1" in text
    assert "VLLM_SERVER_DEV_MODE=1 vllm serve" in text
    assert "--enable-scale-out --logprobs-mode processed_logprobs" in text


def test_an_adapter_needs_its_own_options() -> None:
    config = read_language("opd", {"rollout.engine": {"vllm": "http://a:2"}, "lora": {"rank": 16}})
    (line,) = commands(config)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in line
    assert "--enable-lora --max-lora-rank 16" in line


@pytest.mark.slow
def test_doctor_names_the_server_and_what_scoring_took(tmp_path: Path) -> None:
    with Teacher({"t": load("nano/math-teacher", key="t")}) as server:
        lines = list(examine("opd", {"teacher.served": server.url, "eval.prompts.limit": 4, "out": str(tmp_path)}))
    assert any(line.startswith("served    teacher.model: opd serve, model 't'") for line in lines)
    assert any("320 bytes a token" in line for line in lines)
    assert not any("where chance is" in line for line in lines)
    assert any(re.match(r"waiting   for servers: \d+% of a step if nothing is hidden", line) for line in lines)
    assert any(re.match(r"  +the longest sequence .* has \d+ tokens: --max-model-len \d+", line) for line in lines)


@pytest.mark.slow
def test_doctor_warns_of_a_server_whose_states_this_head_makes_nothing_of(tmp_path: Path) -> None:
    other = load("nano/math-teacher", key="t")
    with torch.no_grad():
        other.model.model.norm.weight.mul_(-1)
    with Teacher({"t": other}) as server:
        lines = list(examine("opd", {"teacher.served": server.url, "eval.prompts.limit": 4, "out": str(tmp_path)}))
    assert any("Fix: serve the model that teacher.model names" in line for line in lines)


@pytest.mark.slow
def test_doctor_says_what_a_rollout_server_takes(tmp_path: Path) -> None:
    model = load("nano/math-base", key="s")
    engine = {"type": "vllm", "wait": 5}
    keys: dict[str, Any] = {"eval.prompts.limit": 4, "rollout.max_new_tokens": 8, "out": str(tmp_path)}
    with RolloutServer(model, max_length=400) as server:
        keys["rollout.engine"] = {**engine, "url": server.url}
        lines = list(examine("opd", keys))
    assert "served    rollout.engine: vLLM, model 'student', up to 400 tokens" in lines
    assert any("rollout.ahead=1 hides rollouts behind updates" in line for line in lines)


def test_a_server_with_less_room_than_the_run_needs_is_refused(tmp_path: Path) -> None:
    with RolloutServer(load("nano/math-base", key="s"), max_length=64) as server:
        keys = {"rollout.engine": {"vllm": server.url}, "rollout.max_new_tokens": 60, "out": str(tmp_path)}
        said = r"for rollout\.engine, .* exceeds the model's 64\. .* start the server with --max-model-len \d+"
        with pytest.raises(OpdError, match=said):
            list(examine("opd", keys))
