"""Hint authors: rules, a local model's strict format, and a real HTTP server that misbehaves."""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import opd
from opd.api import examine
from opd.config.read import read
from opd.engines.hf import HFEngine
from opd.errors import ConfigError, DataError, EmptyStepError, ModelError
from opd.models.chat import Chat
from opd.models.language import stop_ids
from opd.teachers.experience import gather_experience
from opd.teachers.hint_http import HttpAuthor
from opd.teachers.hints import INSTRUCTION, ModelAuthor, RulesAuthor, parse, transcript
from opd.types import Event, Generation, Hint, Prompt, Rollout, Span
from support.chat_server import Server
from support.models import make_model
from support.tokenizers import make_tokenizer

ROLLOUT = Rollout(
    prompt=Prompt(id="p", messages=({"role": "user", "content": "a b"},)),
    prompt_ids=(1, 5),
    completion_ids=(6, 7, 2, 8, 9, 2),
    completion_mask=(True,) * 6,
    logprobs=(0.0,) * 6,
    turns=(Span(0, 3), Span(3, 6)),
    finish="stop",
    events=(
        Event("unknown_tool", 0, Span(0, 3), {"tool": "c", "tools": "d, e"}),
        Event("odd", 1, Span(3, 6)),
    ),
    transcript=(
        {"role": "assistant", "content": "c"},
        {"role": "tool", "content": "no such tool"},
        {"role": "assistant", "content": "f"},
    ),
)


def test_rules_follow_events_that_have_a_template() -> None:
    assert RulesAuthor().hints([ROLLOUT]) == [[Hint(Span(0, 3), "Reminder: available tools: d, e.")]]
    assert RulesAuthor({"unknown_tool": None}).hints([ROLLOUT]) == [[]]
    own = RulesAuthor({"odd": "think", "unknown_tool": "not {tool}"})
    assert [h.text for h in own.hints([ROLLOUT])[0]] == ["not c", "think"]


def test_a_template_with_a_wrong_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"templates.unknown_tool has the field 'names', .* have tool, tools"):
        RulesAuthor({"unknown_tool": "{names}"}).hints([ROLLOUT])


def test_transcript_numbers_the_turns() -> None:
    system, user = transcript(ROLLOUT, INSTRUCTION)
    assert system["content"] == INSTRUCTION
    assert user["content"] == "Transcript:\nuser: a b\nturn 1: c\ntool: no such tool\nturn 2: f"


@pytest.mark.parametrize(
    ("answer", "hints", "counted"),
    [
        ("turn 1: use d", [(0, "use d")], {"written": 1}),
        ("Turn 2 : x\nturn 1: y", [(1, "x"), (0, "y")], {"written": 2}),
        ("turn 1 : x turn 2 : y", [(0, "x"), (1, "y")], {"written": 2}),
        ("none", [], {"none": 1}),
        (" None. ", [], {"none": 1}),
        ("", [], {"unparsable": 1}),
        ("I think turn 1: x", [], {"unparsable": 1}),
        ("turn 0: x turn 3: y turn 1: z", [(0, "z")], {"bad_turn": 2, "written": 1}),
        (f"turn {'9' * 5000}: x turn 1: y", [(0, "y")], {"bad_turn": 1, "written": 1}),
        ("turn 1:  turn 2: y", [(1, "y")], {"empty": 1, "written": 1}),
        ("<think>turn 2: no, turn 1</think>\n\nturn 1: use d", [(0, "use d")], {"written": 1}),
        ("turn 2 looks fine\n</think>\nturn 1: use d", [(0, "use d")], {"written": 1}),
        ("<think>turn 1: cut off", [], {"unparsable": 1}),
        ("Here are the faulty turns:\n- **Turn 1**: use d", [(0, "use d")], {"written": 1}),
        ("Sure!\n\n1. **Turn 1:** use d\n2. **Turn 2:** or e", [(0, "use d"), (1, "or e")], {"written": 2}),
        ("### Turn 2: use d\nand then e.\n\nI hope that helps.", [(1, "use d\nand then e.")], {"written": 1}),
        ("turn 1: as in turn 2: use d\nturn 2: e", [(0, "as in turn 2: use d"), (1, "e")], {"written": 2}),
        ("I read all of it.\n\n**None.**", [], {"none": 1}),
        (
            "<|channel|>analysis<|message|>turn 1: x<|end|><|start|>assistant<|channel|>final<|message|>none",
            [],
            {"none": 1},
        ),
    ],
)
def test_the_strict_format(answer: str, hints: list[tuple[int, str]], counted: dict[str, int]) -> None:
    counts: Counter[str] = Counter()
    assert parse(answer, ROLLOUT, counts) == [Hint(ROLLOUT.turns[turn], text) for turn, text in hints]
    assert counts == counted


@pytest.mark.parametrize("unit", ["**", "`", "turn 1:", "turn 1: x\n", "> ", "<think>", "turn "])
def test_an_answer_that_repeats_itself_is_read_at_once(unit: str) -> None:
    started = time.process_time()
    parse(unit * (1_000_000 // len(unit)), ROLLOUT, Counter())
    assert time.process_time() - started < 5


def test_a_real_local_model_is_asked_and_its_rubbish_dropped() -> None:
    critic = make_model(3)
    engine = HFEngine(critic)
    author = ModelAuthor(engine, Chat(critic.tokenizer), stop_ids=stop_ids(critic), max_new_tokens=8)
    assert author.hints([ROLLOUT, ROLLOUT]) == [[], []]
    assert author.counts["unparsable"] == 2


def test_a_models_answer_becomes_hints_and_a_long_transcript_is_dropped() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["turn", "1", "2"])
    chat = Chat(tokenizer)

    class Scripted:
        def generate(
            self, contexts: Sequence[Sequence[int]], max_new_tokens: Sequence[int], **_: Any
        ) -> list[Generation]:
            ids = (*chat.insert_text_ids("turn 2 : a b"), tokenizer.eos_token_id)
            return [Generation(ids, (0.0,) * len(ids), True) for _ in contexts]

        def sync(self) -> None: ...

    author = ModelAuthor(Scripted(), chat, stop_ids=frozenset(), max_new_tokens=8)
    assert author.hints([ROLLOUT]) == [[Hint(ROLLOUT.turns[1], "a b")]]
    tight = ModelAuthor(Scripted(), chat, stop_ids=frozenset(), max_new_tokens=8, max_length=12)
    assert tight.hints([ROLLOUT]) == [[]]
    assert tight.counts == {"too_long": 1}


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


def other(number: int) -> Rollout:
    prompt = Prompt(id=str(number), messages=({"role": "user", "content": f"number {number}"},))
    return dataclasses.replace(ROLLOUT, prompt=prompt)


def test_an_endpoint_is_asked_once_per_transcript(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPD_HINT_API_KEY", "secret")
    author = HttpAuthor(server.url, "critic-1")
    assert author.hints([ROLLOUT]) == [[Hint(Span(0, 3), "use d")]]
    assert author.hints([ROLLOUT]) == [[Hint(Span(0, 3), "use d")]]
    assert len(server.requests) == 1
    assert server.authorization == ["Bearer secret"]
    assert server.requests[0]["model"] == "critic-1"
    assert author.counts["written"] == 2


def test_the_fields_of_a_request_can_be_chosen(server: Server) -> None:
    HttpAuthor(server.url, "m").hints([other(0)])
    thinker = {
        "max_new_tokens": None,
        "temperature": None,
        "extra": {"max_completion_tokens": 99, "reasoning_effort": "low"},
    }
    HttpAuthor(server.url, "m", **thinker).hints([other(0)])  # type: ignore[arg-type]
    usual, own = ({k: v for k, v in r.items() if k not in ("model", "messages")} for r in server.requests)
    assert usual == {"temperature": 0, "max_tokens": 256}
    assert own == {"max_completion_tokens": 99, "reasoning_effort": "low"}


def test_the_reference_answer_is_shown_where_asked_for(server: Server) -> None:
    known = dataclasses.replace(ROLLOUT, prompt=dataclasses.replace(ROLLOUT.prompt, answer="f"))
    for see_answer in (False, True):
        HttpAuthor(server.url, "m", see_answer=see_answer).hints([known])
    hidden, shown = (request["messages"][1]["content"] for request in server.requests)
    assert "Reference" not in hidden
    assert shown == f"Reference answer: f\n{hidden}"


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"temperature": 1}, r"author\.extra: 'temperature' is set by the author itself. Fix: use its key temperature"),
        ({"stream": True}, r"author\.extra: one whole answer is read. Fix: leave stream and n out"),
    ],
)
def test_a_field_that_the_author_sets_is_refused(extra: dict[str, Any], sentence: str) -> None:
    author = {"type": "http", "url": "http://127.0.0.1:9/v1", "model": "m", "extra": extra}
    with pytest.raises(ConfigError, match=sentence):
        read("hint", {"teacher.view.author": author})


def test_an_answer_can_only_be_shown_where_there_is_one(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n')
    keys = {"prompts": str(file), "eval.prompts": None, "out": str(tmp_path / "out")}
    author = {"type": "model", "model": "nano/critic", "see_answer": True}
    with pytest.raises(DataError, match=r"prompt '1' has no answer, and teacher\.view\.author\.see_answer needs one"):
        opd.train("hint", {**keys, "teacher.view.author": author})


def test_what_became_of_answers_is_measured_and_doctor_shows_one(server: Server, tmp_path: Path) -> None:
    server.answers = ["<think>\nhm</think>\n- **Turn 1**: use another tool"]
    server.answer = {"choices": [{"message": {"content": "All of it is wrong."}}]}
    keys = {
        "teacher.view.author": {"type": "http", "url": server.url, "model": "m", "concurrency": 1},
        "rollout.prompts_per_step": 4,
        "optimizer.steps": 1,
        "eval.prompts": None,
        "log": [],
        "report": False,
        "out": str(tmp_path / "out"),
    }
    opd.train("hint", keys)
    line = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])["train"]
    found = {name: value for name, value in line.items() if name.startswith("hints/")}
    assert found == {"hints/written": 1, "hints/unparsable": 3, "hints/bad_turn": 0, "hints/too_long": 0}
    lines = list(examine("hint", keys))
    assert "hints     0 written, 32 unparsable, 0 bad turn, 0 too long" in lines
    assert "answer    of the hint author: 'All of it is wrong.'" in lines
    assert any(
        line.startswith("WARNING   most of the hint author's answers have no line 'turn N: …'") for line in lines
    )


def test_without_a_token_none_is_sent(server: Server) -> None:
    HttpAuthor(server.url, "m").hints([ROLLOUT])
    assert server.authorization == [None]


def test_answers_are_kept_across_runs(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        assert HttpAuthor(server.url, "m", cache=str(tmp_path / "c")).hints([ROLLOUT])[0]
    assert len(server.requests) == 1
    HttpAuthor(server.url, "another", cache=str(tmp_path / "c")).hints([ROLLOUT])
    assert len(server.requests) == 2


@pytest.mark.slow
def test_passing_failures_are_retried_and_the_servers_wish_is_respected(server: Server) -> None:
    server.failures = [(500, {}), (429, {"Retry-After": "1"})]
    started = time.perf_counter()
    assert HttpAuthor(server.url, "m").hints([ROLLOUT])[0]
    assert time.perf_counter() - started >= 1
    assert len(server.requests) == 3


def test_a_refusal_is_reported_at_once_and_without_the_token(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPD_HINT_API_KEY", "secret")
    server.failures = [(401, {})]
    with pytest.raises(ModelError, match="answered 401: no, and here is why") as caught:
        HttpAuthor(server.url, "m").hints([ROLLOUT])
    assert "secret" not in str(caught.value)
    assert len(server.requests) == 1


def test_a_slow_server_and_a_dead_one_are_named(server: Server) -> None:
    server.delay = 0.5
    with pytest.raises(ModelError, match=r"no answer from .* after 2 attempts \(no whole answer within 0.1 s\)"):
        HttpAuthor(server.url, "m", timeout=0.1, retries=1).hints([ROLLOUT])
    with pytest.raises(ModelError, match="Fix: start the server"):
        HttpAuthor("http://127.0.0.1:9/v1", "m", retries=0).hints([ROLLOUT])


def test_another_kind_of_server_is_named(server: Server) -> None:
    server.answer = {"hello": "world"}
    with pytest.raises(ModelError, match="does not answer as an OpenAI-compatible chat endpoint"):
        HttpAuthor(server.url, "m").hints([ROLLOUT])


def test_requests_run_side_by_side_up_to_the_limit(server: Server) -> None:
    server.delay = 0.1
    found = HttpAuthor(server.url, "m", concurrency=3).hints([other(i) for i in range(9)])
    assert all(found)
    assert server.most_at_once == 3


def test_an_author_rewrites_experience_into_few_lessons(server: Server) -> None:
    server.answers = ["turn 1: look it up", "turn 1: look it up\nturn 2: ask first", "Lessons:\n- look up\n- ask\n- x"]
    batch = [other(0), other(1)]
    text = gather_experience(batch, HttpAuthor(server.url, "m", concurrency=1), items=2, consolidate=True)
    assert text == "look up\nask"
    task, items = server.requests[-1]["messages"]
    assert "at most 2 general lessons" in task["content"]
    assert items["content"].splitlines() == ["(2 times) look it up", "(1 times) ask first"]
    server.answers = ["turn 1: look it up", "turn 1: look it up", "nothing to add"]
    with pytest.raises(EmptyStepError, match=r"no line that starts with '- ', but 'nothing to add'"):
        gather_experience(batch, HttpAuthor(server.url, "m"), items=2, consolidate=True)
    with pytest.raises(ConfigError, match="rules cannot rewrite"):
        gather_experience([ROLLOUT], RulesAuthor(), items=2, consolidate=True)


@pytest.mark.parametrize("fault", ["refuses", "is not there", "is another kind of server"])
def test_every_error_names_the_run_files_key_of_this_author(server: Server, fault: str) -> None:
    url, key = server.url, "teacher.view.experience.author"
    if fault == "refuses":
        server.failures = [(401, {})]
    elif fault == "is not there":
        url = "http://127.0.0.1:9/v1"
    else:
        server.answer = {"hello": "world"}
    with pytest.raises(ModelError) as caught:
        HttpAuthor(url, "m", retries=0, key=key).hints([ROLLOUT])
    assert str(caught.value).startswith(f"{key}: ")


def test_an_author_of_experience_is_named_as_such_by_its_run(tmp_path: Path) -> None:
    author = {"type": "http", "url": "http://127.0.0.1:9/v1", "model": "m", "retries": 0}
    view = {"type": "context", "experience": {"author": author, "prompts": 4}}
    given = {"teacher.view": view, "out": str(tmp_path / "out")}
    with pytest.raises(ModelError, match=r"^teacher\.view\.experience\.author\.url: no answer"):
        opd.train("opcd", {**given, "log": []})
