"""Tasks for prompts without an environment: a checker of final answers, and one task per source."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from opd.data import maths
from opd.data.final_answer import clean, final_answer, is_maths
from opd.data.numbers import number
from opd.data.tasks import observe
from opd.errors import DataError
from opd.rewards.reactions import BatchTask
from opd.types import Message, Observation, Prompt, Rollout, Task

_SIGNS = re.compile(r"[\d\\^_+*/=<>|{}()\[\]-]")
"""Characters without one of which a text is words, which are never read as maths."""
_RELATION = re.compile(r"^[^=<>!]*[^=<>!\s]\s*=\s*(?=[^=])")
"""What stands before the only equals sign of a text."""
_BETWEEN = re.compile(r"\s+(?:or|and)\s+")
_LETTER = re.compile(r"\(?([A-J])\)?")
_OPTION = re.compile(r"\W*(?:(?:option|choice)\s+)?\(?([A-J])(?:\).*|[.:,]\s.*|\W*)", re.IGNORECASE | re.DOTALL)
_OPTION_INSIDE = re.compile(r"\(([A-J])\)|\b(?:[Oo]ption|[Cc]hoice)\s+([A-J])\b|\b([A-J])\W*$")


def answers_match(text: str, reference: str) -> bool:
    r"""Whether a text's final answer is the reference answer's.

    The final answer is the line after the last ``####``, else the whole of the last ``\boxed{}``, else the rest of the
    last "answer is" or "answer:", else the last number of the text or, if the reference is words, the last line. What
    stands in ``<answer>`` tags is looked at alone.
    Thoughts between ``<think>`` and ``</think>`` do not count. Numbers are compared as numbers (``1,000``, ``$18``,
    ``3.50``, ``1/2``, ``50%``), options by their letter, words without case, and anything else by math-verify, for at
    most three seconds of computing.

    Args:
        text: what the student wrote.
        reference: the reference answer, or a worked solution that ends with it.

    Example:
        >>> answers_match(r"so it is \boxed{\frac{1}{2}}", "0.5")
        True
    """
    given, wanted = final_answer(text), final_answer(reference)
    if given is None or wanted is None:
        return False
    if _plain(given.words) == _plain(wanted.words):
        return True
    if letter := _LETTER.fullmatch(wanted.words):
        return _option(given.words, text) == letter[1]
    if not _SIGNS.search(wanted.words):
        return False
    return _equal(given.value, wanted.value)


def _equal(given: str, wanted: str) -> bool:
    """Whether two values are equal: as numbers, or else as maths."""
    ours, theirs = number(given), number(wanted)
    if ours and theirs:
        return ours.equals(theirs)
    if _plain(given) == _plain(wanted):
        return True
    if ("=" in given) != ("=" in wanted):  # "AB = 5", where 5 is asked for
        ours, theirs = number(_RELATION.sub("", given)), number(_RELATION.sub("", wanted))
        if ours and theirs:
            return ours.equals(theirs)
    given, wanted = _BETWEEN.sub(", ", given), _BETWEEN.sub(", ", wanted)
    is_expression = all(_SIGNS.search(value) and is_maths(value) for value in (given, wanted))
    return is_expression and maths.equal(maths.latex(given), maths.latex(wanted))


def _plain(text: str) -> str:
    """Maths without spaces; words without case and punctuation."""
    if _SIGNS.search(text):
        return "".join(text.split())
    return " ".join(re.sub(r"[^\w\s]+", " ", text).casefold().split()) or text


def _option(answer: str, text: str) -> str | None:
    """The letter that an answer names, or else the last one that the whole text does; None if there is none."""
    if found := _OPTION.fullmatch(answer):
        return found[1].upper()
    inside = list(_OPTION_INSIDE.finditer(clean(text)))
    return next(filter(None, inside[-1].groups())) if inside else None


class AnswerTask:
    """One turn, which is right if its final answer is a reference answer's; not checked without a reference."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """Refuse: this task has no prompts."""
        raise DataError(f"the answer checker has no prompts, so no split '{split}'. Fix: give prompts.path")

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        """Check the turn against ``prompt.answers``; one of them is enough."""
        if not prompt.answers:
            return Observation()
        right = any(answers_match(transcript[-1]["content"], answer) for answer in prompt.answers)
        return Observation(correct=right)


class EachItsOwn:
    """Prompts of several sources, each with its own environment and checker.

    Args:
        tasks: the task of each prompt id; a prompt without a task is not checked.
    """

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self.tasks = tasks

    def prompts(self, split: str) -> Sequence[Prompt]:
        """Refuse: this task has no prompts."""
        raise DataError(f"a mix has no prompts of its own, so no split '{split}'. Fix: call prompts() of its tasks")

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        """The reaction of the prompt's own task."""
        task = self.tasks.get(prompt.id)
        return observe(task, prompt, transcript) if task else Observation()

    def rewarded(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rollouts with the rewards that each prompt's own task gives to whole batches."""
        found = list(rollouts)
        tasks = [self.tasks.get(rollout.prompt.id) for rollout in rollouts]
        for task in dict.fromkeys(tasks):
            if not isinstance(task, BatchTask):
                continue
            own = [n for n, other in enumerate(tasks) if other is task]
            for n, rollout in zip(own, task.rewarded([rollouts[n] for n in own]), strict=True):
                found[n] = rollout
        return found
