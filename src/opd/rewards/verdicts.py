"""How a judge is asked, and how its answer is read. Nothing here knows where the judge runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from opd.data.numbers import whole
from opd.data.thoughts import without_thoughts

BEST = 10
"""The best score; rewards are scores over it, between 0 and 1."""

_SCORE = re.compile(r"\bscore\b[\s*_:=]*(\d+(?:\.\d+)?)(?:\s*/\s*(\d+))?", re.IGNORECASE)
_BARE_SCORE = re.compile(r"\W*(\d+(?:\.\d+)?)(?:\s*/\s*(\d+))?\W*")
_RANKING = re.compile(r"\d+(?:\s*[>=]\s*\d+)*")


def instruction(rubric: str, verdicts: Mapping[str, float] | None = None) -> str:
    """The system message for one answer: the rubric, and the form of the verdict.

    Args:
        verdicts: words that the judge chooses from; None for a score.
    """
    if verdicts:
        return f"{rubric} End with one of these words: {', '.join(verdicts)}."
    return f"{rubric} End with the line 'score: N', where N is a number from 0 (worst) to {BEST} (best)."


def comparison(rubric: str) -> str:
    """The system message for several answers."""
    return (
        f"{rubric} Compare the answers. End with a line of their numbers from best to worst, such as '2 > 1 = 3', with "
        "= between equally good ones."
    )


def score(text: str, verdicts: Mapping[str, float] | None = None) -> float | None:
    """The reward in a judge's answer; None if it has none. The last verdict counts.

    Args:
        verdicts: the reward of each word; None for a score, whose reward is between 0 and 1.
    """
    text = without_thoughts(text)
    if verdicts:
        words = {word.casefold(): reward for word, reward in verdicts.items()}
        choice = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
        found = re.findall(rf"(?<!\w)(?:{choice})(?!\w)", text.casefold())
        return words[found[-1]] if found else None
    scores = list(_SCORE.finditer(text)) or [m for m in [_BARE_SCORE.fullmatch(text)] if m]
    if not scores:
        return None
    reward = float(scores[-1][1]) / float(scores[-1][2] or BEST) if float(scores[-1][2] or BEST) else -1.0
    return reward if 0 <= reward <= 1 else None


def ranking(text: str, number: int) -> list[float] | None:
    """The rewards of ``number`` answers in a judge's comparison, from 1 for the best to 0; None if it has none.

    Equally good answers share the mean of their ranks' rewards.
    """
    text = without_thoughts(text)
    for line in reversed(text.splitlines()):
        if found := _RANKING.fullmatch(line.strip(" \t*_`.")):
            ranks = [[(whole(n) or 0) - 1 for n in part.split("=")] for part in found[0].split(">")]
            return _rewards(ranks, number)
    return None


def _rewards(ranks: Sequence[Sequence[int]], number: int) -> list[float] | None:
    """The rewards of answers by their place; None if it does not name each answer once."""
    if sorted(n for rank in ranks for n in rank) != list(range(number)):
        return None
    rewards, place = [0.0] * number, 0
    for rank in ranks:
        for n in rank:
            rewards[n] = 1 - (place + (len(rank) - 1) / 2) / (number - 1)
        place += len(rank)
    return rewards
