"""What tasks with prompts drawn by program share: the sizes of their splits, and how a turn is read."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from opd.errors import ConfigError
from opd.types import Message, Prompt

SPLITS = {"test": 256, "val": 256, "train": 4096}
"""Prompts in each split."""

Problem = TypeVar("Problem")

_SPECIAL = re.compile(r"<\|[^|]*\|>")


def draw_splits(
    seed: int,
    draw: Callable[[random.Random], Problem],
    key: Callable[[Problem], Hashable],
    make: Callable[[Problem, str], Prompt],
) -> dict[str, tuple[Prompt, ...]]:
    """All splits of a task, no two prompts of one key.

    Args:
        seed: what everything is drawn from.
        draw: one problem.
        key: what may be in one prompt only.
        make: the prompt of a problem, whose id ends in ``split/index``.
    """
    rng = random.Random(seed)
    seen: set[Hashable] = set()

    def draw_new() -> Problem:
        while key(problem := draw(rng)) in seen:
            pass
        seen.add(key(problem))
        return problem

    return {split: tuple(make(draw_new(), f"{split}/{i}") for i in range(size)) for split, size in SPLITS.items()}


def pick(task: str, splits: Mapping[str, Sequence[Prompt]], split: str) -> Sequence[Prompt]:
    """The prompts of one split.

    Raises:
        ConfigError: the task has no such split.
    """
    if split not in splits:
        raise ConfigError(f"Task '{task}' has no split {split!r}: use {', '.join(splits)}.")
    return splits[split]


def last_turn(transcript: Sequence[Message]) -> str:
    """The last message in lower case, without special tokens."""
    return _SPECIAL.sub(" ", transcript[-1]["content"]).strip().lower()
