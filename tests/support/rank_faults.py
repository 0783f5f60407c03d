"""Rewards that fail in one process of several."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any


def rank_1_fails(prompt: str, completion: str, row: Mapping[str, Any]) -> float:
    """One process cannot compute it."""
    if os.environ["RANK"] == "1":
        raise ValueError("no such grader")
    return float(len(completion))


def rank_1_waits(prompt: str, completion: str, row: Mapping[str, Any]) -> float:
    """In one process it never comes."""
    if os.environ["RANK"] == "1":
        time.sleep(600)
    return float(len(completion))


def length(prompt: str, completion: str, row: Mapping[str, Any]) -> float:
    """A number in every process."""
    return float(len(completion))
