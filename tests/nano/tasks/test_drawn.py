"""Shared code of tasks with generated prompts: unique keys, and parsing of a turn."""

from __future__ import annotations

import random

from opd.nano.tasks.drawn import SPLITS, draw_splits, last_turn
from opd.types import Prompt


def test_keys_are_unique_over_all_splits() -> None:
    def draw(rng: random.Random) -> int:
        return rng.randrange(10_000)

    splits = draw_splits(0, draw, lambda number: number // 2, lambda number, id: Prompt(id=id, data={"n": number}))
    assert {name: len(prompts) for name, prompts in splits.items()} == SPLITS
    keys = [prompt.data["n"] // 2 for prompts in splits.values() for prompt in prompts]
    assert len(set(keys)) == len(keys)
    assert splits["val"][3].id == "val/3"


def test_a_turn_is_parsed_without_special_tokens_and_case() -> None:
    transcript = [{"role": "assistant", "content": "first"}, {"role": "assistant", "content": " Answer 4<|im_end|>"}]
    assert last_turn(transcript) == "answer 4"
