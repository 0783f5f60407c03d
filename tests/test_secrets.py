"""A planted key is in no file that a run leaves, and nowhere in the terminal's output."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import yaml

from support.command_line import Done, command, process
from support.hostile_server import HostileServer, Reply, chat, key_of, whole

KEY = "sk-planted/0123456789"

SMALL = ["optimizer.steps=2", "rollout.prompts_per_step=8", "rollout.max_new_tokens=32", "eval.every=1"]
SMALL += ["eval.prompts.limit=4", "log=[]"]

CRASHES = """
import os
from opd.nano.tasks.tools import ToolsTask

class Task(ToolsTask):
    def step(self, prompt, transcript):
        if transcript[-1]["content"]:
            raise RuntimeError("a crash with " + os.environ["OPD_HINT_API_KEY"])
"""


def echoes_in_a_hint(connection: socket.socket, request: str) -> None:
    connection.sendall(whole(chat(f"turn 1: your key is {key_of(request)}")))


def echoes_in_a_refusal(connection: socket.socket, request: str) -> None:
    connection.sendall(whole(f"{key_of(request)} is wrong".encode(), status=f"401 {key_of(request)}"))


def echoes_in_another_schema(connection: socket.socket, request: str) -> None:
    connection.sendall(whole(f'{{"headers": "Bearer {key_of(request)}"}}'.encode()))


def clean(folder: Path, done: Done) -> None:
    """Neither the folder nor the output has the key, the planted password, or any part of them."""
    texts = {"stdout": done.stdout, "stderr": done.stderr}
    texts |= {str(p.relative_to(folder)): p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file()}
    assert not [name for name, text in texts.items() if "planted" in text and name != "p.yaml"]


def author(url: str) -> str:
    return f"teacher.view.author={{type: http, url: '{url}', model: m, retries: 0, cache: kept}}"


@pytest.mark.parametrize("reply", [echoes_in_a_hint, echoes_in_a_refusal, echoes_in_another_schema])
def test_a_run_leaves_no_key(reply: Reply, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPD_HINT_API_KEY", KEY + "\n")
    with HostileServer(reply) as server:
        done = command("train", "hint", *SMALL, author(server.url), "out=run", cwd=tmp_path)
        assert server.requests
        assert all(KEY in request for request in server.requests)
    assert done.returncode == (0 if reply is echoes_in_a_hint else 2)
    assert (tmp_path / "run" / "report.html").is_file()
    clean(tmp_path, done)


@pytest.mark.parametrize("address", ["http://me:planted@127.0.0.1:9/v1", "http://127.0.0.1:9/v1?key=planted"])
def test_an_address_with_a_key_is_refused(address: str, tmp_path: Path) -> None:
    done = command("train", "hint", *SMALL, author(address), "out=run", cwd=tmp_path)
    assert done.returncode == 2
    assert "teacher.view.author.url: the address has a user, a password or a query" in done.stderr
    clean(tmp_path, done)


def test_a_key_in_place_of_its_variable_is_refused(tmp_path: Path) -> None:
    overrides = ["teacher.view.author=http", "teacher.view.author.url=http://127.0.0.1:9/v1"]
    overrides += ["teacher.view.author.model=m", f"teacher.view.author.api_key_env={KEY}"]
    done = command("train", "hint", *SMALL, *overrides, "out=run", cwd=tmp_path)
    assert done.returncode == 2
    assert "teacher.view.author.api_key_env: this is no name of an environment variable" in done.stderr
    clean(tmp_path, done)


def test_a_key_among_the_fields_of_a_request_is_refused(tmp_path: Path) -> None:
    extra = "teacher.view.author.extra={api_key: sk-planted}"
    done = command("train", "hint", *SMALL, author("http://127.0.0.1:9/v1"), extra, "out=run", cwd=tmp_path)
    assert "teacher.view.author.extra: 'api_key' is named like a key" in done.stderr
    clean(tmp_path, done)


def test_a_crash_prints_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPD_HINT_API_KEY", KEY)
    (tmp_path / "mine.py").write_text(CRASHES)
    with HostileServer(echoes_in_a_hint) as server:
        overrides = [author(server.url), "prompts.task=mine:Task", "eval.prompts=null", "out=run"]
        done = command("train", "hint", *SMALL[:3], "log=[]", *overrides, cwd=tmp_path)
    assert "RuntimeError: a crash with ***" in done.stderr
    clean(tmp_path, done)


@pytest.mark.slow
def test_a_pipeline_leaves_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPD_HINT_API_KEY", KEY + "\n")
    with HostileServer(echoes_in_a_refusal) as server:
        stage = {"run": "hint", **yaml.safe_load("\n".join(one.replace("=", ": ", 1) for one in SMALL))}
        stage |= yaml.safe_load(author(server.url).replace("=", ": ", 1))
        (tmp_path / "p.yaml").write_text(yaml.safe_dump({"out": "out", "stages": {"first": stage}}))
        done = process("pipeline", "p.yaml", cwd=tmp_path)
        assert server.requests
    assert done.returncode == 2
    assert (tmp_path / "out" / "report.html").is_file()
    clean(tmp_path, done)
