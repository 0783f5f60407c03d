"""What doctor says about servers: their commands before anything is asked, and what they are."""

from pathlib import Path

import pytest

from opd.api import examine
from opd.errors import OpdError
from opd.models.loading import load
from opd.servers.advice import commands
from support.families import read_language
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
