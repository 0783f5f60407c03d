"""Shared code of tasks with generated prompts: sizes of splits, and parsing of a turn."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from opd.errors import ConfigError
from opd.types import Message, Prompt

SPLITS = {"test": 256, "val": 256, "train": 4096}
"""Number of prompts in each split."""

Problem = TypeVar("Problem")

_SPECIAL = re.compile(r"<\|[^|]*\|>")


def draw_splits(
    seed: int,
    draw: Callable[[random.Random], Problem],
    key: Callable[[Problem], Hashable],
    make: Callable[[Problem, str], Prompt],
) -> dict[str, tuple[Prompt, ...]]:
    """All splits of a task, in which no two prompts have the same key.

    Args:
        seed: seed of all problems.
        draw: returns a random problem.
        key: returns the part of a problem that must be unique.
        make: returns the prompt of a problem; its id ends in ``split/index``.
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
        ConfigError: the task does not have the split.
    """
    if split not in splits:
        raise ConfigError(f"split: task '{task}' has no split '{split}'. Fix: use {', '.join(splits)}")
    return splits[split]


def last_turn(transcript: Sequence[Message]) -> str:
    """The last message in lower case, without special tokens."""
    return _SPECIAL.sub(" ", transcript[-1]["content"]).strip().lower()
