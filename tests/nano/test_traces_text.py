"""Traces of the text tasks: format of the tasks' prompts, and no prompt of val or test."""

from __future__ import annotations

import random
from functools import partial
from itertools import islice

import pytest

from opd.data.tasks import get_task
from opd.nano.tasks import search, strings
from opd.nano.tasks.search import Fact, Problem
from opd.nano.tasks.strings import Program
from opd.nano.traces import Source, Trace, Turn, stream
from opd.nano.traces_text import (
    hasty_search_trace,
    hasty_strings_trace,
    mixed_trace,
    search_trace,
    strings_trace,
)
from opd.types import Prompt

PROGRAM = Program("sort", "swap", tuple("kbdaf"))
LIKES, LIVES = Fact("zed", "likes", "vex"), Fact("vex", "lives in", "frob")


def traces(source: Source, number: int = 400) -> list[Trace]:
    return list(islice(stream(source, 0), number))


def held_out(task: str) -> list[Prompt]:
    return [prompt for split in ("val", "test") for prompt in get_task(task).prompts(split)]


@pytest.mark.parametrize(("task", "source"), [("strings", strings_trace), ("search", search_trace)])
def test_a_trace_has_the_format_of_the_tasks_prompts(task: str, source: Source) -> None:
    roles = [message["role"] for message in get_task(task).prompts("train")[0].messages or ()]
    for trace in traces(source):
        assert [turn.role for turn in trace] == [*roles, "assistant"]
        assert [turn.trained for turn in trace] == [False] * len(roles) + [True]


def test_a_program_of_val_or_test_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([*(Program(*prompt.data["program"]) for prompt in held_out("strings")), PROGRAM])
    monkeypatch.setattr(strings, "draw", lambda rng: next(drawn))
    assert strings_trace(random.Random(0)) == [
        Turn("user", "sort then swap: k b d a f", trained=False),
        Turn("assistant", "a b d f k; answer k b d f a"),
    ]


def test_facts_asked_for_in_val_or_test_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(Fact(*prompt.data["first"]), Fact(*prompt.data["second"])) for prompt in held_out("search")]
    drawn = iter([*(Problem(pair, *pair) for pair in pairs), Problem((LIVES, LIKES), LIKES, LIVES)])
    monkeypatch.setattr(search, "draw", lambda rng: next(drawn))
    assert search_trace(random.Random(0)) == [
        Turn("system", "documents: vex lives in frob. zed likes vex.", trained=False),
        Turn("user", "who zed likes lives where?", trained=False),
        Turn("assistant", "zed likes vex. vex lives in frob. answer frob"),
    ]


@pytest.mark.parametrize(
    ("task", "source", "careful"),
    [("strings", hasty_strings_trace, strings_trace), ("search", hasty_search_trace, search_trace)],
)
def test_a_hasty_answer_is_the_intermediate_result(task: str, source: Source, careful: Source) -> None:
    for hasty, right in zip(traces(source), traces(careful), strict=True):
        assert hasty[:-1] == right[:-1]
        half, _, answer = hasty[-1].text.partition(" answer ")
        assert right[-1].text.startswith(half)
        assert half.rstrip(";.").endswith(answer)
        prompt = Prompt(id="p", data={"result": tuple(answer.split()) if task == "strings" else answer})
        said = [{"role": "assistant", "content": hasty[-1].text}]
        assert get_task(task).step(prompt, said).correct


def test_sources_are_mixed_equally() -> None:
    mixed = traces(partial(mixed_trace, sources=(strings_trace, search_trace)), 1000)
    assert 0.45 < sum(trace[0].role == "system" for trace in mixed) / len(mixed) < 0.55
