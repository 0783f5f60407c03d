"""The search task: two hops are needed, one person fits, and only the right name passes."""

from __future__ import annotations

import random

import pytest

from opd.errors import ConfigError
from opd.tasks.drawn import SPLITS
from opd.tasks.search import NUM_DISTRACTORS, Fact, Problem, SearchTask, draw
from opd.types import Prompt

TASK = SearchTask()
PROBLEM = Problem(
    facts=(Fact("zed", "lives in", "frob"), Fact("blip", "likes", "quix"), Fact("zed", "owns", "quix")),
    known=Fact("zed", "owns", "quix"),
    asked=Fact("zed", "lives in", "frob"),
)


def reward(text: str, result: str = "frob") -> float | None:
    return TASK.step(Prompt(id="s", data={"result": result}), [{"role": "assistant", "content": text}]).reward


def problems(number: int = 1000) -> list[Problem]:
    rng = random.Random(0)
    return [draw(rng) for _ in range(number)]


def test_what_is_asked_and_how_it_is_answered() -> None:
    assert PROBLEM.documents == "documents: zed lives in frob. blip likes quix. zed owns quix."
    assert PROBLEM.question == "who owns quix lives where?"
    assert PROBLEM.working == "zed owns quix. zed lives in frob. answer frob"
    turned = PROBLEM._replace(known=PROBLEM.asked, asked=PROBLEM.known)
    assert turned.question == "who lives in frob owns what?"


def test_two_hops_lead_to_one_answer() -> None:
    for problem in problems():
        fitting = [f for f in problem.facts if f[1:] == problem.known[1:]]
        assert fitting == [problem.known]
        assert [f for f in problem.facts if f[:2] == (problem.known.subject, problem.asked.relation)] == [problem.asked]
        assert problem.known.relation != problem.asked.relation
        words = problem.question.rstrip("?").split()
        assert problem.known.subject not in words
        assert problem.asked.object not in words


def test_facts_distract() -> None:
    drawn = problems()
    assert {len(problem.facts) - 2 for problem in drawn} == set(NUM_DISTRACTORS)
    others = [[f for f in p.facts if f not in (p.known, p.asked)] for p in drawn]
    trapped = sum(any(f.object == p.known.object for f in rest) for p, rest in zip(drawn, others, strict=True))
    assert 0.2 < trapped / len(drawn) < 0.5
    rivals = sum(any(f.relation == p.asked.relation for f in rest) for p, rest in zip(drawn, others, strict=True))
    assert rivals / len(drawn) > 0.8
    first = sum(p.facts.index(p.known) < p.facts.index(p.asked) for p in drawn)
    assert 0.45 < first / len(drawn) < 0.55


@pytest.mark.parametrize("split", ["val", "test"])
def test_gold_answers_get_the_reward_and_their_working_alone_does_not(split: str) -> None:
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
        ("zed owns quix . zed lives in frob . answer frob<|im_end|>", 1.0),
        ("answer quix then Answer Frob", 1.0),
        ("answer frob then answer quix", 0.0),
        ("answer frob .", 0.0),
        ("answer frob quix", 0.0),
        ("answer fro", 0.0),
        ("frob", 0.0),
        ("answer", 0.0),
        ("", 0.0),
    ],
)
def test_only_the_name_after_the_last_answer_counts(text: str, expected: float) -> None:
    assert reward(text) == expected


def test_splits_have_their_sizes_and_share_no_facts_to_find() -> None:
    splits = {name: TASK.prompts(name) for name in SPLITS}
    assert {name: len(prompts) for name, prompts in splits.items()} == SPLITS
    keys = [(prompt.data["known"], prompt.data["asked"]) for prompts in splits.values() for prompt in prompts]
    assert len(set(keys)) == len(keys)


def test_unknown_splits_name_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"Task 'search' has no split 'dev': use test, val, train"):
        TASK.prompts("dev")
