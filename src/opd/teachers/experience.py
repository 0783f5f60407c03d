"""Experience: what a student should have known, gathered from its own rollouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from opd.data.thoughts import without_thoughts
from opd.errors import ConfigError, EmptyStepError
from opd.teachers.hint_http import HttpAuthor
from opd.teachers.hints import ModelAuthor
from opd.types import HintAuthor, Rollout

LISTED = 64
"""The most different items that an author gets to rewrite, most frequent first."""

INSTRUCTION = (
    "These are lessons from single mistakes, with how often each was noted. Merge what says the same, drop what holds "
    "for one case alone, and answer with at most {items} general lessons, one a line, each line starting with '- '."
)
"""Instruction for an author that consolidates; the source gives the step and not its words."""


def gather_experience(rollouts: Sequence[Rollout], author: HintAuthor, *, items: int, consolidate: bool = False) -> str:
    """Extract an item for every mistake, accumulate them, and consolidate.

    Args:
        rollouts: the student's own.
        author: finds mistakes and says of each what should have been known.
        items: the most that are kept, so that the context stays short.
        consolidate: let the author rewrite all items into at most ``items``; otherwise equal ones count as one.

    Returns:
        One text, an item a line. Without consolidation the most frequent first, of equally frequent ones the earlier.

    Raises:
        EmptyStepError: the author found no mistake in any of the rollouts, or writes no lesson.
        ConfigError: rules are to consolidate.

    Source: OPCD, arXiv 2602.12275.
    """
    said = Counter(hint.text for hints in author.hints(rollouts) for hint in hints)
    if not said:
        raise EmptyStepError(
            f"teacher.view.experience: the author found no mistake in {len(rollouts)} rollouts. Fix: raise "
            "teacher.view.experience.prompts, or write teacher.view.text"
        )
    if consolidate:
        return _rewritten(said, author, items)
    return "\n".join(text for text, _ in said.most_common(items)).strip()


def _rewritten(said: Counter[str], author: HintAuthor, items: int) -> str:
    if not isinstance(author, ModelAuthor | HttpAuthor):
        raise ConfigError(
            "teacher.view.experience.consolidate: rules cannot rewrite. Fix: name a model as author, or leave it out"
        )
    listed = "\n".join(f"({count} times) {text}" for text, count in said.most_common(LISTED))
    task = {"role": "system", "content": INSTRUCTION.format(items=items)}
    answer = without_thoughts(author.answers([(task, {"role": "user", "content": listed})])[0] or "")
    lines = [line.strip() for line in answer.splitlines()]
    lessons = [line.removeprefix("- ").strip() for line in lines if line.startswith("- ")]
    if not lessons:
        raise EmptyStepError(
            "teacher.view.experience.consolidate: the author wrote no line that starts with '- ', but "
            f"'{answer[:100]}'. Fix: take another author, or leave consolidate out"
        )
    return "\n".join(lessons[:items])
