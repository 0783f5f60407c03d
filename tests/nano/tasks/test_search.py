"""The search task: two hops are needed, one chain fits, and only the correct name passes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from opd.errors import ConfigError
from opd.nano.tasks.drawn import SPLITS
from opd.nano.tasks.search import NUM_DISTRACTORS, Fact, Problem, SearchTask, draw
from opd.types import Prompt

TASK = SearchTask()
PROBLEM = Problem(
    facts=(Fact("blip", "lives in", "frob"), Fact("zed", "owns", "vex"), Fact("zed", "likes", "blip")),
    first=Fact("zed", "likes", "blip"),
    second=Fact("blip", "lives in", "frob"),
)


def reward(text: str, result: str = "frob") -> float | None:
    return TASK.step(Prompt(id="s", data={"result": result}), [{"role": "assistant", "content": text}]).correct


def problems(number: int = 1000) -> list[Problem]:
    rng = random.Random(0)
    return [draw(rng) for _ in range(number)]


def test_question_and_working() -> None:
    assert PROBLEM.documents == "documents: blip lives in frob. zed owns vex. zed likes blip."
    assert PROBLEM.question == "who zed likes lives where?"
    assert PROBLEM.working == "zed likes blip. blip lives in frob. answer frob"
    owned = PROBLEM._replace(first=Fact("zed", "owns", "blip"), second=Fact("blip", "likes", "frob"))
    assert owned.question == "what zed owns likes what?"


def test_two_hops_have_one_answer() -> None:
    for problem in problems():
        first, second = problem.first, problem.second
        assert first.object == second.subject
        assert first.relation != second.relation
        for hop in (first, second):
            assert [f for f in problem.facts if f[:2] == hop[:2]] == [hop]
        assert not {second.subject, second.object} & set(problem.question.split())


def test_other_facts_are_distractors() -> None:
    drawn = problems()
    others = [[f for f in p.facts if f not in (p.first, p.second)] for p in drawn]
    assert {len(rest) for rest in others} == set(NUM_DISTRACTORS)

    def share(of: Callable[[Problem, Fact], bool]) -> float:
        return sum(any(of(p, f) for f in rest) for p, rest in zip(drawn, others, strict=True)) / len(drawn)

    assert share(lambda p, f: f.relation == p.second.relation) > 0.8
    assert share(lambda p, f: f.relation == p.first.relation) > 0.8
    assert all(len({f.subject for f in p.facts}) == len(p.facts) for p in drawn)
    earlier = sum(p.facts.index(p.first) < p.facts.index(p.second) for p in drawn)
    assert 0.45 < earlier / len(drawn) < 0.55


@pytest.mark.parametrize("split", ["val", "test"])
def test_reference_answers_get_the_reward_and_their_working_alone_does_not(split: str) -> None:
    for prompt in TASK.prompts(split):
        working, _, name = (prompt.answer or "").rpartition(" answer ")
        assert reward(prompt.answer or "", name) == 1.0
        assert reward(working, name) == 0.0
        documents, question = ((prompt.messages or ())[i]["content"] for i in (0, 1))
        assert all(f"{fact.strip()}." in documents for fact in working.rstrip(".").split("."))
        assert name not in question.split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("zed likes blip . blip lives in frob . answer frob<|im_end|>", 1.0),
        ("answer blip then Answer Frob", 1.0),
        ("answer frob then answer blip", 0.0),
        ("answer frob .", 0.0),
        ("answer frob blip", 0.0),
        ("answer fro", 0.0),
        ("frob", 0.0),
        ("answer", 0.0),
        ("", 0.0),
    ],
)
def test_only_the_name_after_the_last_answer_is_checked(text: str, expected: float) -> None:
    assert reward(text) == expected


def test_splits_have_their_sizes_and_share_no_answer_facts() -> None:
    splits = {name: TASK.prompts(name) for name in SPLITS}
    assert {name: len(prompts) for name, prompts in splits.items()} == SPLITS
    keys = [(prompt.data["first"], prompt.data["second"]) for prompts in splits.values() for prompt in prompts]
    assert len(set(keys)) == len(keys)


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"task 'search' has no split 'dev'. Fix: use test, val, train"):
        TASK.prompts("dev")
