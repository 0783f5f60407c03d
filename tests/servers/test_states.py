"""Served teachers are local ones at another place: the same signal, the same losses, or a sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import opd
from opd.axes.base import Objects
from opd.config.read import read
from opd.config.served import ServedConfig
from opd.errors import ConfigError, ModelError, OpdError
from opd.evaluation import memory
from opd.language.context import LanguageContext
from opd.language.run import LanguageRun
from opd.models.language import LanguageModel
from opd.models.loading import load
from opd.servers.command import named, serve
from opd.servers.http import Answer
from opd.servers.model import ServedModel, load_served
from opd.servers.wire import OPD, header, question
from opd.signals import CrossSignal, FullSignal, HiddenSignal, SampledSignal, TeachersSignal
from opd.types import Signal
from support.chat_server import CriticServer
from support.families import read_language
from support.hostile_server import HostileServer, drips, sends, whole
from support.models import SHAPES, make_model
from support.served import FAULTS, Teacher
from support.small_runs import PROMPTS, small_run
from support.tokenizers import make_byte_tokenizer

NANO = {
    name: f"nano/{name}" for name in ("math-teacher", "math-biased", "math-teacher-bpe", "tools-base", "base", "critic")
}


@pytest.fixture(scope="module")
def nano() -> Iterator[Teacher]:
    with Teacher({name: load(source, key=name) for name, source in NANO.items()}) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved teacher of the tiny students."""
    make_model(1, layers=3, hidden=48).save(tmp_path / "teacher")
    return tmp_path / "teacher"


def served_by(folder: Path | str, url: str, **settings: Any) -> ServedModel:
    settings = {"states": "float32", "wait": 5, "timeout": 1, **settings}
    return load_served(str(folder), ServedConfig.model_validate({"url": url, **settings}), key="teacher")


def context(recipe: str, out: Path, **keys: Any) -> LanguageContext:
    overrides = {"out": str(out), "report": None, "eval.diagnostics": 0, "rollout.prompts_per_step": 8, **keys}
    return LanguageRun.load(read_language(recipe, overrides), Objects()).context


def log_probs(signal: FullSignal | CrossSignal) -> torch.Tensor:
    hidden_TD = signal.hidden_TD if isinstance(signal, FullSignal) else signal.teacher_hidden_TD
    return (hidden_TD @ signal.head_VD.T).float().log_softmax(-1)


def distance(one: Signal, other: Signal) -> float:
    """The mean KL of two signals' distributions, or the largest difference of what else they hold."""
    assert torch.equal(one.rollout_T, other.rollout_T)
    assert torch.equal(one.position_T, other.position_T)
    assert torch.equal(one.token_T, other.token_T)
    assert len(one)
    if isinstance(one, TeachersSignal):
        assert isinstance(other, TeachersSignal)
        pairs = zip(one.parts, other.parts, strict=True)
        return max(distance(a.arrived(), b.arrived()) for a, b in pairs if len(a))
    if isinstance(one, SampledSignal):
        assert isinstance(other, SampledSignal)
        return float((one.teacher_logprobs_T - other.teacher_logprobs_T).abs().max())
    if isinstance(one, HiddenSignal):
        assert isinstance(other, HiddenSignal)
        return float((one.layers_TKD - other.layers_TKD).abs().max() / one.layers_TKD.abs().max())
    assert isinstance(one, FullSignal | CrossSignal)
    assert isinstance(other, FullSignal | CrossSignal)
    p, q = log_probs(one), log_probs(other)
    return float((p.exp() * (p - q)).sum(-1).mean())


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "opd": ("opd", {}),
    "hint": ("hint", {"teacher.model": "nano/tools-base"}),
    "lsm": ("lsm", {}),
    "tml": ("tml", {}),
    "gold": ("gold", {}),
    "hidden": ("opd", {"loss.signal": {"type": "hidden", "bridge": {"rank": 4, "prompts": 16}}}),
    "mopd": (
        "tml",
        {
            "teacher": {
                "models": {
                    "good": {"model": "nano/math-teacher", "domains": ["math"]},
                    "biased": {"model": "nano/math-biased", "domains": ["math"], "weight": 0.5},
                }
            },
            "loss.signal": "full",
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_served_teacher_gives_the_local_ones_signal(name: str, nano: Teacher, tmp_path: Path) -> None:
    recipe, keys = CASES[name]
    local = context(recipe, tmp_path, **keys)
    remote = context(recipe, tmp_path, **keys, **_served(local, nano))
    rollouts = local.sampler(local.sampling).rollout(local.prompts[:8], 1)
    segments = local.view().segments(rollouts)
    given, sent = (run.config.loss.signal.build(run)[0].score(rollouts, segments).arrived() for run in (local, remote))
    assert distance(given, sent) <= (1e-6 if not isinstance(given, SampledSignal | HiddenSignal) else 1e-4)


def _served(local: LanguageContext, server: Teacher) -> dict[str, Any]:
    def settings(model: str) -> dict[str, Any]:
        return {"url": server.url, "name": model.removeprefix("nano/"), "states": "float32"}

    teacher = local.config.teacher
    if teacher.models:
        return {f"teacher.models.{name}.served": settings(one.model) for name, one in teacher.models.items()}
    return {"teacher.served": settings(teacher.model or "")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opd", "mopd"])
def test_a_run_with_a_served_teacher_trains_as_a_local_one(name: str, nano: Teacher, tmp_path: Path) -> None:
    recipe, keys = CASES[name]
    keys = {**keys, "optimizer.steps": 2, "eval.every": 2, "report": None, "rollout.prompts_per_step": 8}
    keys["eval.prompts"] = {"task": "math", "split": "test", "limit": 8}
    local = context(recipe, tmp_path, **keys)
    results = []
    for out, more in (("local", {}), ("served", _served(local, nano))):
        lines = opd.train(recipe, {**keys, **more, "out": str(tmp_path / out)}).out / "metrics.jsonl"
        results.append([float(part.split(",")[0]) for part in lines.read_text().split('"loss": ')[1:]])
    assert len(results[0]) == 2
    assert all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(*results, strict=True))


@pytest.mark.slow
def test_hints_of_a_served_author_for_a_served_teacher_train_as_local_ones(nano: Teacher, tmp_path: Path) -> None:
    small = {"optimizer.steps": 2, "rollout.prompts_per_step": 4, "eval.prompts": None, "report": None}
    keys = {"teacher.model": "nano/tools-base", **small, "guards.max_idle": 100}
    critic = CriticServer(load("nano/critic", key="c"))
    http = {"type": "http", "url": critic.url, "model": "critic"}
    served = {"url": nano.url, "name": "tools-base", "states": "float32"}
    both: dict[str, dict[str, Any]] = {
        "local": {"teacher.view.author": {"type": "model", "model": "nano/critic"}},
        "served": {"teacher.view.author": http, "teacher.served": served},
    }
    found = []
    for name, more in both.items():
        lines = opd.train("hint", {**keys, **more, "out": str(tmp_path / name)}).out / "metrics.jsonl"
        steps = [json.loads(line).get("train", {}) for line in lines.read_text().splitlines()]
        found.append([(step["tokens"], step["hints/written"], step["loss"]) for step in steps if "loss" in step])
    critic.stop()
    assert len(found[0]) == 2
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
        assert one[1]


def test_only_wanted_rows_are_sent_and_each_has_two_bytes_a_unit(folder: Path) -> None:
    model = load(str(folder), key="t")
    ids = [(5, 6, 7, 8, 9, 10, 11), (12, 13, 14)]
    with Teacher({"t": model}) as server:
        remote = served_by(folder, server.url, states="bfloat16")
        wanted = [[2, 3, 5], [2]]
        future = remote.server.ask(list(zip(ids, wanted, strict=True)))
        states = remote.server.requests.result(future)
        assert remote.server.requests.received == 4 * 2 * 48
    for one, rows, sequence in zip(states, wanted, ids, strict=True):
        with torch.no_grad():
            local = model.hidden(torch.tensor([sequence]), torch.ones(1, len(sequence), dtype=torch.int64))[0, rows]
        torch.testing.assert_close(one.float(), local.bfloat16().float(), rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["math-teacher", "math-biased"])
def test_log_probabilities_of_given_tokens(name: str, nano: Teacher) -> None:
    model, ids = load(NANO[name], key="t"), [[5, 6, 7, 8], [9, 10]]

    def asked(**wanted: Any) -> httpx.Response:
        return httpx.post(f"{nano.url}/pooling", json={**question(name, ids, "bfloat16"), OPD: wanted})

    reply = asked(rows=[[[1, 3]], [[0, 1]]], tokens=[[[7], [8, 20]], [[10]]])
    assert [one["shape"] for one in header(Answer(reply.content, dict(reply.headers)))["data"]] == [[3], [1]]
    found = torch.frombuffer(bytearray(reply.content), dtype=torch.float32).split([3, 1])
    for sequence, rows, tokens, given in zip(ids, [[1, 2, 2], [0]], [[7, 8, 20], [10]], found, strict=True):
        with torch.no_grad():
            logits = model.model(torch.tensor([sequence])).logits[0, rows, : model.rows].float()
        expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        torch.testing.assert_close(given, expected, atol=1e-5, rtol=0)
    refused: dict[str, dict[str, Any]] = {
        "for other rows": {"rows": [[[1, 3]], [[0, 1]]], "tokens": [[[7]], [[10]]]},
        "not from 0 to": {"rows": [[[1, 2]], [[0, 1]]], "tokens": [[[7]], [[10**6]]]},
        "leave blocks out": {"rows": [[[1, 2]], [[0, 1]]], "tokens": [[[7]], [[10]]], "blocks": [1]},
    }
    for said, wanted in refused.items():
        reply = asked(**wanted)
        assert reply.status_code == 400
        assert said in reply.text


@pytest.mark.parametrize("shape", SHAPES)
def test_heads_of_every_kind_are_read_from_their_own_file(shape: str, tmp_path: Path) -> None:
    model = make_model(3, **SHAPES[shape])
    model.save(tmp_path)
    with Teacher({"t": model}) as server:
        remote = served_by(tmp_path, server.url)
    assert torch.equal(remote.head_VD, model.head_VD)
    assert (remote.rows, remote.width, remote.num_layers, remote.max_length) == (31, 32, 2, 256)
    assert sum(p.numel() for p in remote.model.parameters()) == model.model.get_output_embeddings().weight.numel()


def train(out: Path, folder: Path, url: str, **served: Any) -> opd.Result:
    tree = small_run(out, teacher={"model": str(folder), "served": {"url": url, "wait": 5, "timeout": 1, **served}})
    return opd.train({**tree, "report": None}, student=make_model(0), prompts=PROMPTS)


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"slow", "drips"}))
@pytest.mark.slow
def test_a_fault_is_asked_about_again_and_changes_nothing(fault: str, folder: Path) -> None:
    with Teacher({"t": load(str(folder), key="t")}) as server:
        remote = served_by(folder, server.url, states="bfloat16")
        group = [((5, 6, 7, 8, 9), [1, 2, 3, 4]), ((9, 8, 7, 6), [1, 2, 3])]
        right = remote.server.requests.result(remote.server.ask(group))
        server.faults.append(fault)
        again = remote.server.requests.result(remote.server.ask(group))
    assert all(torch.equal(a, b) for a, b in zip(right, again, strict=True))
    assert len(remote.server.requests.faults) == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["slow", "drips"])
def test_a_slow_answer_meets_the_deadline(fault: str, folder: Path) -> None:
    with Teacher({"t": load(str(folder), key="t")}) as server:
        remote = served_by(folder, server.url)
        server.faults.append(fault)
        future = remote.server.ask([((5, 6, 7, 8, 9), [1, 2, 3, 4])])
        remote.server.requests.result(future)
    (told,) = remote.server.requests.faults
    assert "no whole answer within 1 s" in told


@pytest.mark.parametrize("fault", ["normalised", "other weights", "garbage"])
@pytest.mark.slow
def test_a_server_that_stays_wrong_ends_the_run_before_the_step(fault: str, folder: Path, tmp_path: Path) -> None:
    with Teacher({"t": load(str(folder), key="t")}) as server:
        steps = tmp_path / "out" / "metrics.jsonl"

        class Break:
            def step(self, step: int, metrics: Any) -> None:
                server.faults.extend([fault] * 100)

        tree = small_run(
            tmp_path / "out",
            teacher={"model": str(folder), "served": {"url": server.url, "wait": 1}},
            checkpoint={"every": 1},
        )
        with pytest.raises(ModelError, match=r"teacher\.served\.url: .* has given no right answer for 1 s .*--resume"):
            opd.train({**tree, "report": None}, student=make_model(0), prompts=PROMPTS, callbacks=[Break()])
    assert '"step": 1, "train"' in steps.read_text()
    assert '"step": 2, "train"' not in steps.read_text()
    assert (tmp_path / "out/checkpoints/000001").is_dir()


def test_another_address_takes_over(folder: Path, tmp_path: Path) -> None:
    model = load(str(folder), key="t")
    with Teacher({"t": model}) as one:
        other = Teacher({"t": model})
        remote = load_served(
            str(folder), ServedConfig.model_validate({"url": [one.url, other.url], "timeout": 1}), key="teacher"
        )
        other.stop()
        futures = [remote.server.ask([((5, 6, n), [1, 2])]) for n in range(5, 11)]
        assert all(len(remote.server.requests.result(future)[0]) == 2 for future in futures)


@pytest.mark.slow
def test_the_log_names_each_fault_and_metrics_say_what_the_server_cost(folder: Path, tmp_path: Path) -> None:
    with Teacher({"t": load(str(folder), key="t")}) as server:
        first = train(tmp_path / "first", folder, server.url)
        hello = ["", ""]
        server.faults.extend([*hello[:1], "503", "cut", "normalised"])
        second = train(tmp_path / "second", folder, server.url)
    told = [event["text"] for event in second.events if event["kind"] == "server"]
    assert len(told) == 3
    assert any("503" in text for text in told)
    assert any("normalised" in text for text in told)
    assert (first.out / "model.safetensors").read_bytes() == (second.out / "model.safetensors").read_bytes()
    assert '"server_wait_s"' in (second.out / "metrics.jsonl").read_text()


# At the start


def refusal(folder: Path, url: str, **settings: Any) -> str:
    with pytest.raises(OpdError) as caught:
        served_by(folder, url, **settings)
    return str(caught.value)


def test_another_tokenizer_is_refused(folder: Path) -> None:
    other = make_model(1, hidden=48, tokenizer=make_byte_tokenizer(["a b c d e f g"], 40))
    with Teacher({"t": other}) as server:
        assert "its tokenizer is another one" in refusal(folder, server.url)


def test_another_width_is_refused(folder: Path) -> None:
    with Teacher({"t": make_model(1, hidden=32)}) as server:
        assert "shape [8, 32] in place of [8, 48]" in refusal(folder, server.url)


def test_two_servers_with_different_weights_are_refused(folder: Path) -> None:
    models = [make_model(seed, layers=3, hidden=48) for seed in (1, 2)]
    with Teacher({"t": models[0]}) as one, Teacher({"t": models[1]}) as other:
        urls = ServedConfig.model_validate({"url": [one.url, other.url]})
        with pytest.raises(ModelError, match="not those that the run began with"):
            load_served(str(folder), urls, key="teacher")


def test_a_name_is_needed_among_several(folder: Path) -> None:
    model = make_model(1, layers=3, hidden=48)
    with Teacher({"a": model, "b": make_model(2, layers=3, hidden=48)}) as server:
        assert "has the models a, b (asked for the only one)" in refusal(folder, server.url)
        assert "asked for c" in refusal(folder, server.url, name="c")
        assert served_by(folder, server.url, name="a").server.served.name == "a"


def test_the_key_is_asked_for_and_sent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Teacher({"t": make_model(1, layers=3, hidden=48)}, key="sk-teacher-0123456789") as server:
        assert "answered 401" in refusal(folder, server.url)
        assert "api_key_env" in refusal(folder, server.url)
        monkeypatch.setenv("OPD_TEACHER_API_KEY", "sk-teacher-0123456789")
        assert served_by(folder, server.url).server.labelled


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (sends(whole(b"<html>hello</html>")), "it lists no models"),
        (sends(whole(b'{"data": []}')), "has the models  (asked for the only one)"),
        (sends(whole(b"gone", status="404 Not Found")), "answered 404: gone"),
        (drips(whole(b"{}" * 100), every=0.05), "no whole answer within 1 s"),
    ],
)
def test_what_is_no_teacher_is_one_sentence(reply: Any, said: str, folder: Path) -> None:
    with HostileServer(reply) as server:
        assert said in refusal(folder, server.url.removesuffix("/v1"))


def test_a_server_that_is_not_there_is_one_sentence(folder: Path) -> None:
    assert "teacher.served.url: no answer from 'http://127.0.0.1:1'" in refusal(folder, "http://127.0.0.1:1")


# The run file and the command


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"teacher.served": "http://a"}, None),
        ({"teacher.served": ["http://a", "http://b"]}, None),
        ({"teacher.served": "a"}, "no address of a server"),
        ({"teacher.served": "http://me:secret@a"}, "could hold a key"),
        ({"teacher.served": {"url": "http://a", "api_key": "sk-1"}}, "api_key"),
        ({"teacher.served": {"url": "http://a", "states": "float16"}}, "states"),
        ({"teacher.served": "http://a", "teacher.quantize": "4bit"}, "quantize and served"),
        ({"teacher.served": "http://a", "rollout.source": "teacher"}, "needs a teacher that writes"),
        ({"teacher.served": "http://a", "teacher.gate": {}}, "needs a teacher that writes"),
    ],
)
def test_run_files_with_servers(keys: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    if said is None:
        config = read_language("opd", keys)
        assert config.teacher.served
        assert config.teacher.served.url[0] == "http://a"
        return
    with pytest.raises(ConfigError) as caught:
        read("opd", keys)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_served_needs_a_model() -> None:
    with pytest.raises(ConfigError, match="served says where a model is read, and no model is given"):
        read("opsd", {"teacher.served": "http://a"})


def test_names_of_served_models() -> None:
    assert named(["nano/base", "x=org/other"]) == {"base": "nano/base", "x": "org/other"}
    with pytest.raises(ConfigError, match="two models have the name 'base'"):
        named(["nano/base", "base=x"])


def test_other_machines_reach_a_server_only_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPD_TEACHER_API_KEY", raising=False)
    options: dict[str, Any] = {"port": 0, "dtype": "float32", "device": "cpu", "max_tokens": 9, "say": print}
    with pytest.raises(ConfigError, match="there is no key"):
        serve(["nano/base"], host="0.0.0.0", api_key_env="OPD_TEACHER_API_KEY", **options)
    with pytest.raises(ConfigError, match="no name of an environment variable") as caught:
        serve(["nano/base"], host="0.0.0.0", api_key_env="sk-planted", **options)
    assert "sk-planted" not in str(caught.value)


def test_a_teacher_given_from_python_is_not_served(tmp_path: Path, teacher: LanguageModel) -> None:
    tree = small_run(tmp_path, teacher={"model": "t", "served": "http://127.0.0.1:1"})
    with pytest.raises(ConfigError, match=r"teacher\.served: a teacher given from Python"):
        opd.train(tree, student=make_model(0), teacher=teacher, prompts=PROMPTS)


def test_the_memory_of_passes_ahead_is_counted(nano: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = {"teacher.served": {"url": nano.url, "name": "math-teacher"}}
    for size, room, times in ((2, 0, 2), (2, 1e9, 4), (8, 1e9, 1)):
        monkeypatch.setattr(memory, "AHEAD_BYTES", room)
        keys = {"optimizer.micro_batch": size}
        local, there = (memory.estimate(context("opd", tmp_path, **keys, **more)) for more in ({}, served))
        assert there.activations == times * local.activations
