"""The client of chat endpoints against servers that drip, flood, echo and lie."""

import gzip
import html
import json
import pickle
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from urllib.parse import quote

import pytest

from opd.config.secrets import Secret, from_environment, redact, redact_sentence
from opd.errors import ConfigError, ModelError, OpdError
from opd.servers import http as module
from opd.servers.chat import ChatEndpoint
from support.hostile_server import HostileServer, Reply, chat, drips, key_of, sends, whole

KEY = "sk-planted-0123456789"
QUESTION = [({"role": "user", "content": "a"},)]


def endpoint(url: str, *, timeout: float = 5, cache: Path | None = None) -> ChatEndpoint:
    return ChatEndpoint(
        url, "m", {}, timeout=timeout, retries=0, cache=str(cache) if cache else None, key="teacher.view.author.url"
    )


def refusal(reply: Reply, *, timeout: float = 5) -> str:
    with HostileServer(reply) as server, pytest.raises(ModelError) as caught:
        endpoint(server.url, timeout=timeout).answers(QUESTION)
    return str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r", " ", "\t", "\r\n"])
def test_white_space_around_a_key_is_left_out(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPD_HINT_API_KEY", KEY + end)
    with HostileServer(sends(whole(chat("hello")))) as server:
        assert endpoint(server.url).answers(QUESTION) == ["hello"]
        assert key_of(server.requests[0]) == KEY


@pytest.mark.parametrize(
    "key", ["sk-\u00e9planted", "sk-\u200bplanted", "sk-\nplanted", "sk-\x00planted", "sk planted"]
)
def test_a_key_that_no_header_can_carry_is_refused_before_any_request(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opd.config.secrets.os.environ", {"OPD_HINT_API_KEY": key})
    with HostileServer(sends(whole(chat("hello")))) as server:
        with pytest.raises(ConfigError, match="has a character that a header cannot carry") as caught:
            endpoint(server.url)
        assert not server.requests
    assert "planted" not in str(caught.value)
    assert str(caught.value).startswith("teacher.view.author.api_key_env: ")


def test_a_named_variable_has_to_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OWN_KEY", raising=False)
    with pytest.raises(ConfigError, match="api_key_env: the environment variable 'OWN_KEY' is not set"):
        ChatEndpoint("http://127.0.0.1:9/v1", "m", {}, api_key_env="OWN_KEY", key="teacher.view.author.url")


@pytest.mark.parametrize(
    "reply",
    [
        lambda connection, request: connection.sendall(
            whole(f"invalid key Bearer {key_of(request)}".encode(), status="401 Unauthorized")
        ),
        lambda connection, request: connection.sendall(whole(json.dumps({"key": key_of(request)}).encode())),
        lambda connection, request: connection.sendall(f"HTTP/1.1 {key_of(request)}\r\n\r\n".encode()),
        lambda connection, request: connection.sendall(f"HTTP/1.1 200 OK\r\n{key_of(request)}\r\n\r\n".encode()),
    ],
    ids=["401", "another schema", "as the status", "as a header"],
)
def test_a_server_that_echoes_the_key_cannot_put_it_into_the_error(
    reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPD_HINT_API_KEY", KEY)
    assert KEY not in refusal(reply)


def test_a_server_that_echoes_the_key_cannot_put_it_into_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPD_HINT_API_KEY", KEY)
    escaped = "".join(f"\\u{ord(c):04x}" for c in KEY).encode()

    def echo(connection: object, request: str) -> None:
        connection.sendall(whole(chat("KEY").replace(b"KEY", escaped)))  # type: ignore[attr-defined]

    with HostileServer(echo) as server:
        assert endpoint(server.url, cache=tmp_path).answers(QUESTION) == ["***"]
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.iterdir())


ODD_KEY = "\"sk-pl'an/t+ed<&>\\01"
"""A key whose characters are escaped differently by JSON, HTML, Python and addresses."""


def as_php_does(text: str) -> str:
    return json.dumps(text).replace("/", "\\/").replace("<", "\\u003C")


def quoted(text: str) -> str:
    return quote(text, safe="")


ESCAPES: list[Callable[[str], str]] = [json.dumps, as_php_does, html.escape, repr]


@pytest.mark.parametrize(
    ("inner", "outer"), [*product([str, *ESCAPES], ESCAPES), (quoted, quoted), *product([quoted], ESCAPES)]
)
def test_a_key_is_found_however_a_server_escapes_it(
    inner: Callable[[str], str], outer: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPD_HINT_API_KEY", ODD_KEY)
    said = refusal(sends(whole(outer(inner(f"wrong: {ODD_KEY}, sorry")).encode(), status="401 No")))
    assert "***" in said
    assert not any(part in said.partition("wrong")[2] for part in ("sk", "pl", "ed", "01"))


def test_a_text_with_a_key_stays_json() -> None:
    Secret(ODD_KEY)
    assert json.loads(redact(json.dumps({"a": f"the key {ODD_KEY}", "b": ODD_KEY}))) == {"a": "the key ***", "b": "***"}
    assert redact(json.dumps(["nothing", "\\", "&amp;"] * 3)) == json.dumps(["nothing", "\\", "&amp;"] * 3)


def test_a_key_is_never_printed_or_stored() -> None:
    secret = Secret(KEY)
    assert KEY not in f"{secret} {secret!r} {[secret]}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        json.dumps(secret)
    assert redact(f"a {KEY} b {KEY}") == "a *** b ***"
    assert redact_sentence("http://me:pw@host/?api_key=abc&x=1 Authorization: Bearer abcdefgh") == (
        "http://***@host/?api_key=***&x=1 Authorization: Bearer ***"
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://me:planted@host/v1",
        "http://host/v1?key=planted",
        "http://host/v1#planted",
        "ftp://planted/v1",
        "http://[::1/planted",
        "http://host:99999/planted",
        "http://ho st/planted",
        "planted",
    ],
)
def test_an_address_that_holds_a_key_or_is_none_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^teacher\.view\.author\.url: .* Fix: write it like") as caught:
        endpoint(url)
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_server_that_drips_bytes_ends_at_the_deadline(part: str) -> None:
    answer = whole(chat("hello " * 100))
    cut = answer.index(b"\r\n\r\n") + 4 if part == "body" else 0

    def reply(connection: object, request: str) -> None:
        connection.sendall(answer[:cut])  # type: ignore[attr-defined]
        drips(answer[cut:])(connection, request)  # type: ignore[arg-type]

    started = time.monotonic()
    assert "no whole answer within 0.3 s" in refusal(reply, timeout=0.3)
    assert time.monotonic() - started < 2


def test_a_slow_answer_within_the_deadline_is_taken() -> None:
    with HostileServer(drips(whole(chat("hello")), 0.001)) as server:
        assert endpoint(server.url).answers(QUESTION) == ["hello"]


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_of_200_mb_is_not_read(packed: bool) -> None:
    body = b" " * 200_000_000
    head = "Content-Encoding: gzip\r\n" if packed else ""
    answer = whole(gzip.compress(body, 1) if packed else body, headers=head)
    assert "has more than 8,000,000 bytes" in refusal(sends(answer), timeout=30)


@pytest.mark.parametrize("packed", ["gzip, gzip", "br", "gzip,deflate", "zstd"])
def test_an_answer_that_is_packed_twice_or_in_another_way_is_not_unpacked(packed: str) -> None:
    body = gzip.compress(gzip.compress(b" " * 1000))
    said = refusal(sends(whole(body, headers=f"Content-Encoding: {packed}\r\n")))
    assert f"is packed as '{packed}', and not as gzip or deflate. Fix: correct" in said


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"choices": [{"message": {"content": ' + b"9" * 5000 + b"}}]}",
        b"\xff\xfe",
        chat([5]),
        chat([{}]),
        b"[]",
        b"null",
        b'{"choices": {}}',
    ],
)
def test_an_answer_that_is_none_is_one_sentence(body: bytes) -> None:
    assert "does not answer as an OpenAI-compatible chat endpoint" in refusal(sends(whole(body)))


def test_content_in_parts_and_halves_of_characters_are_read() -> None:
    parts = [{"type": "text", "text": "use "}, {"type": "image"}, {"type": "text", "text": "d\ud800"}]
    with HostileServer(sends(whole(chat(parts)))) as server:
        assert endpoint(server.url).answers(QUESTION) == ["use d\ufffd"]


@pytest.mark.parametrize("asked", ["²", "99999999999", "-1", "soon", "1e9", ""])
@pytest.mark.slow
def test_a_strange_retry_after_is_one_sentence(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAIT_S", 0.1)
    answer = whole(b"wait", status="429 No", headers="").replace(
        b"\r\n\r\n", b"\r\nRetry-After: %s\r\n\r\n" % asked.encode()
    )
    with HostileServer(sends(answer)) as server, pytest.raises(ModelError, match="answered 429: wait"):
        ChatEndpoint(server.url, "m", {}, retries=1, key="k.url").answers(QUESTION)
    assert len(server.requests) == 2


def test_a_redirect_is_not_followed() -> None:
    with HostileServer(sends(whole(chat("hello")))) as second:
        answer = whole(
            b"there", status="307 Temporary Redirect", headers=f"Location: {second.url}/chat/completions\r\n"
        )
        assert "answered 307: there" in refusal(sends(answer))
        assert not second.requests


@pytest.mark.parametrize(
    "kept", ["", "{", "[]", '{"answer": 5}', '{"answer": "other", "question": "other"}', "[" * 100_000, "\udcff"]
)
def test_a_damaged_or_foreign_file_of_the_cache_is_asked_for_again(kept: str, tmp_path: Path) -> None:
    with HostileServer(sends(whole(chat("hello")))) as server:
        assert endpoint(server.url, cache=tmp_path).answers(QUESTION) == ["hello"]
        (file,) = tmp_path.iterdir()
        file.write_bytes(kept.encode("utf-8", "surrogateescape"))
        for _ in range(2):
            assert endpoint(server.url, cache=tmp_path).answers(QUESTION) == ["hello"]
        assert len(server.requests) == 2


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        HostileServer(sends(whole(chat("hello")))) as server,
        pytest.raises(OpdError, match=r"author\.cache: .* cannot be"),
    ):
        endpoint(server.url, cache=tmp_path / "file").answers(QUESTION)


def test_a_proxy_that_cannot_be_used_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "foo://me:planted@proxy:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(ConfigError, match="environment's proxy or certificates cannot be used") as caught:
        endpoint("http://127.0.0.1:9/v1").answers(QUESTION)
    assert "planted" not in str(caught.value)


def test_the_environment_is_read_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY_KEY", " \n")
    assert from_environment("EMPTY_KEY", key="k", needed=False) is None
