"""Experience: what a student should have known, gathered from its own rollouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from opd.errors import EmptyStepError
from opd.types import HintAuthor, Rollout


def gather_experience(rollouts: Sequence[Rollout], author: HintAuthor, *, items: int) -> str:
    """Extract an item for every mistake, accumulate them, and consolidate: the most frequent, each once.

    Args:
        rollouts: the student's own.
        author: finds mistakes and says of each what should have been known.
        items: the most that are kept, so that the context stays short.

    Returns:
        One text, most frequent item first; of equally frequent ones the earlier first.

    Raises:
        EmptyStepError: the author has nothing to say about any of the rollouts.

    Source: OPCD, arXiv 2602.12275, whose items a model writes and merges; here equal items are merged.
    """
    said = Counter(hint.text for hints in author.hints(rollouts) for hint in hints)
    if not said:
        raise EmptyStepError(
            f"teacher.view.context.experience: the author found nothing to say about {len(rollouts)} rollouts; roll "
            "out more prompts, or write the context yourself"
        )
    return "\n".join(text for text, _ in said.most_common(items)).strip()
