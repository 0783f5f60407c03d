"""The page as a file: no external content, no markup from data, small size."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from socket import create_connection

import pytest

from opd.errors import DataError
from opd.output.visible import shapeless_pattern, visible
from opd.report.data import BUDGET, run_data
from opd.report.live import LOOPBACK, LiveServer
from opd.report.page import FOLDER, page, write_page, write_report
from support.written_run import HOSTILE, write_run


def test_hostile_text_never_becomes_markup(tmp_path: Path) -> None:
    text = write_report(write_run(tmp_path / "run", text=HOSTILE)).read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text
    assert "window.hacked" in text
    start = text.index('id="data">') + len('id="data">')
    data = json.loads(text[start : text.index("</script>", start)])
    assert data["runs"][0]["prompts"][0]["prompt_text"] == HOSTILE
    assert data["runs"][0]["events"][0]["text"] == HOSTILE


def test_a_folders_name_is_escaped_in_the_title(tmp_path: Path) -> None:
    text = write_report(write_run(tmp_path / "<b>run")).read_text(encoding="utf-8")
    assert "<title>&lt;b&gt;run</title>" in text


def test_the_policy_allows_only_this_script_and_style(tmp_path: Path) -> None:
    text = write_report(write_run(tmp_path / "run")).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'none'"
    for name, element in (("script-src", r"<script>(.*?)</script>"), ("style-src", r"<style>(.*?)</style>")):
        inline = re.search(element, text, re.DOTALL)
        assert inline
        digest = base64.b64encode(hashlib.sha256(inline[1].encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert "unsafe" not in policy[1]
    assert not re.search(r'<[a-z]+[^>]*\s(?:src|href)="(?!#|data:,)', text)


def test_only_a_live_page_may_connect_and_only_to_its_own_server(tmp_path: Path) -> None:
    run = run_data(write_run(tmp_path / "run"))
    assert "connect-src 'none'" in page([run])
    assert "connect-src 'self'" in page([run], live="a-name")


@pytest.mark.slow
def test_a_long_run_is_cut_to_size_and_the_page_names_the_removed_data(tmp_path: Path) -> None:
    steps = tuple(range(0, 220, 20))
    path = write_run(tmp_path / "run", tokens=1500, rollouts=5, steps=steps)
    report = write_report(path)
    assert report.stat().st_size < 5_000_000
    data = run_data(path)
    assert data["left_out"]
    kept = {r["step"] for r in data["rollouts"]}
    assert {0, 200} <= kept
    worst = max(data["rollouts"][0]["terms"][0]["loss"])
    at = data["rollouts"][0]["terms"][0]["loss"].index(worst)
    assert data["rollouts"][0]["student"]["top"][at]
    assert run_data(path, budget=10 * BUDGET)["left_out"] == ""


def test_a_killed_run_has_a_page(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        file = path / name
        file.write_text(file.read_text() + file.read_text()[:50])
    data = run_data(path)
    assert len(data["rollouts"]) == 4
    assert not data["finished"]


def test_a_run_without_metrics_and_rollouts_has_a_page(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "run.json").write_text("{}")
    assert run_data(path)["rollouts"] == []
    assert write_report(path).exists()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no run of opd: it has no run.json"):
        write_page([tmp_path], tmp_path / "report.html")
    with pytest.raises(DataError, match="'nothing' is no run of opd: there is no such folder"):
        write_page([Path("nothing")], tmp_path / "report.html")


def test_the_live_server_answers_only_this_machine_and_only_known_paths(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with LiveServer([run]) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            host, port = "127.0.0.1", server.server_address[1]
            assert server.server_address[0] == host

            def ask(path: str, **headers: str) -> tuple[int, str, str]:
                connection = HTTPConnection(host, port)
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                body = answer.read().decode()
                connection.close()
                return answer.status, answer.headers.get("ETag", ""), body

            assert ask("/")[0] == 200
            status, tag, body = ask("/data.json")
            assert status == 200
            assert json.loads(body)["runs"][0]["name"] == "run"
            assert ask("/data.json", **{"If-None-Match": tag})[0] == 304
            with (run / "metrics.jsonl").open("a") as file:
                file.write('{"step": 2, "train": {"loss": 0.1}}\n')
            status, newer, body = ask("/data.json", **{"If-None-Match": tag})
            assert status == 200
            assert newer != tag
            assert json.loads(body)["runs"][0]["train"]["step"][-1] == 2
            assert ask("/../run.json")[0] == 404
            assert ask("/", Host="evil.example")[0] == 403
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int]]:
    """The address of a live server."""
    with LiveServer([folder]) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield LOOPBACK, server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_second_host_header_is_no_way_in(tmp_path: Path) -> None:
    with served(write_run(tmp_path / "run")) as address, create_connection(address) as visitor:
        visitor.sendall(f"GET / HTTP/1.1\r\nHost: {LOOPBACK}:{address[1]}\r\nHost: evil.example\r\n\r\n".encode())
        assert visitor.makefile().readline().startswith("HTTP/1.0 403")


def test_a_connection_that_asks_nothing_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opd.report.live._Handler.timeout", 0.05)
    with served(write_run(tmp_path / "run")) as address, create_connection(address, timeout=5) as visitor:
        assert visitor.recv(1) == b""


def test_a_visitor_who_leaves_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with LiveServer([write_run(tmp_path / "run")]) as server:
        for error in (BrokenPipeError(), ConnectionResetError()):
            try:
                raise error
            except ConnectionError:
                server.handle_error(None, None)
        assert capfd.readouterr().err == ""
        try:
            raise ValueError("a fault of our own")
        except ValueError:
            server.handle_error(None, None)
    assert "a fault of our own" in capfd.readouterr().err


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_page_shows_characters_without_a_shape_by_their_code_points() -> None:
    """They are those that the terminal writes out."""
    pattern = json.dumps(shapeless_pattern("\\u{{{:x}}}".format))
    script = f"const SHAPELESS_PATTERN = {pattern};\n" + (FOLDER / "dom.js").read_text(encoding="utf-8")
    hostile = "a\u202eb\u2066c\x1b[31md\u200be\x00\U000e0041f\ud7ff\n\t\u200d\u200d😀\ufe0f\U000e0155"
    all_codes = "Array.from({length: 0x110000}, (_, c) => c).filter((c) => shapes(String.fromCodePoint(c)).length > 2)"
    asked = f"{script}\nconsole.log(JSON.stringify([shapes({json.dumps(hostile)}), {all_codes}]))"
    done = subprocess.run(["node", "-e", asked], capture_output=True, text=True, check=True)
    shown, codes = json.loads(done.stdout)
    assert (
        shown == "a⟨U+202E⟩b⟨U+2066⟩c⟨U+001B⟩[31md⟨U+200B⟩e⟨U+0000⟩⟨U+E0041⟩f\ud7ff\n\t\u200d⟨U+200D⟩😀\ufe0f⟨U+E0155⟩"
    )
    assert codes == [c for c in range(0x110000) if visible(chr(c)) != chr(c)]
