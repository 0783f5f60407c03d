"""The run file of a few steps with random models, which the tests of a whole run change in one place or another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROMPTS = [{"prompt": f"{a} {b} {c}"} for a in "abcd" for b in "efgh" for c in "ij"]


def small_run(out: Path, **keys: Any) -> dict[str, Any]:
    """A run file whose models and prompts are given from Python; ``keys`` replace its keys."""
    tree = {
        "student": "s",
        "prompts": {"path": "p.jsonl"},
        "teacher": {"model": "t"},
        "loss": {"divergence": "reverse_kl"},
        "rollout": {"prompts_per_step": 8, "max_new_tokens": 6},
        "optimizer": {"lr": 1e-2, "steps": 6},
        "log": [],
        "out": str(out),
    }
    return tree | keys


def merged(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The run file with some keys changed; a mapping changes single settings of its key."""
    whole = {key: {**tree.get(key, {}), **value} for key, value in changes.items() if isinstance(value, dict)}
    return {**tree, **changes, **whole}
