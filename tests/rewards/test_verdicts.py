"""What a judge's answer says."""

from __future__ import annotations

import pytest

from opd.rewards.verdicts import comparison, instruction, ranking, score

YES = {"yes": 1.0, "no": 0.0}


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("score: 7", 0.7),
        ("Score: 10", 1.0),
        ("**Score:** 0", 0.0),
        ("It deserves a score of sorts.\nscore: 2.5", 0.25),
        ("score: 3, no, score: 4", 0.4),
        ("score: 4/5", 0.8),
        ("8", 0.8),
        (" 8/10.", 0.8),
        ("<think>score: 9</think>score: 1", 0.1),
        ("score: 11", None),
        ("score: 5/0", None),
        ("score: -1", None),
        ("seven", None),
        ("I give it 7 points", None),
        ("<think>score: 9", None),
        ("", None),
    ],
)
def test_a_score(text: str, reward: float | None) -> None:
    assert score(text) == reward


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("yes", 1.0),
        ("No.", 0.0),
        ("It is not, so: **no**", 0.0),
        ("No, wait, it is right: yes", 1.0),
        ("<think>yes</think>no", 0.0),
        ("yesterday", None),
        ("none", None),
        ("", None),
    ],
)
def test_one_of_the_words(text: str, reward: float | None) -> None:
    assert score(text, YES) == reward


@pytest.mark.parametrize(
    ("text", "rewards"),
    [
        ("2 > 1 > 3", [0.5, 1.0, 0.0]),
        ("The second is best.\n**2 > 1 = 3**", [0.25, 1.0, 0.25]),
        ("1=2=3", [0.5, 0.5, 0.5]),
        ("2 > 1 > 3\nHope that helps", [0.5, 1.0, 0.0]),
        ("1 > 2 > 3\n3 > 2 > 1.", [0.0, 0.5, 1.0]),
        ("2 > 1", None),
        ("1 > 2 > 2", None),
        ("1 > 2 > 4", None),
        ("0 > 1 > 2", None),
        ("9" * 5000, None),
        ("best: 2", None),
        ("", None),
    ],
)
def test_a_ranking(text: str, rewards: list[float] | None) -> None:
    assert ranking(text, 3) == rewards


def test_the_form_of_the_verdict_follows_the_rubric() -> None:
    assert instruction("Is it polite?").startswith("Is it polite? End with the line 'score: N'")
    assert instruction("Is it polite?", YES) == "Is it polite? End with one of these words: yes, no."
    assert "2 > 1 = 3" in comparison("Which is polite?")
