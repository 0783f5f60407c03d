"""Mutated run files and data files, by seed."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import yaml

from opd.config.read import RECIPES, recipe_names

VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    2**31,
    10**30,
    -(10**400),
    1e-300,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x",
]
VALUES += [
    "\u202e\x00",
    "\ud800",
    "2026-13-45",
    [],
    [[[]]],
    {},
    {"type": "x"},
    {"a": {"b": {}}},
    "x" * 3000,
    "os:system",
]
VALUES += [[1, 2], ["a"], {"": None}, {5: 5}, "nano/math-base", "stage:x", ".inf", "!!int x", "=", "<<", "*a", "&a"]
VALUES += [
    "http://u:p@h/v1",
    "{x:>999999999}",
    "${HOME}",
    "~",
    "../..",
    "/dev/zero",
    "package.module:Name",
    "json:loads",
]


def run_file(seed: int) -> tuple[Any, list[str]]:
    """A recipe as a tree or text with a few mutations, and overrides."""
    draw = random.Random(seed)
    names = recipe_names()
    text = (RECIPES / f"{draw.choice(names)}.yaml").read_text()
    if draw.random() < 0.3:
        return _text(draw, text), []
    tree = yaml.safe_load(text)
    for _ in range(draw.randint(1, 3)):
        _tree(draw, tree)
    overrides = []
    if draw.random() < 0.3:
        keys = [
            "optimizer.lr",
            "seed",
            "teacher",
            "loss.signal",
            "family",
            "prompts",
            "out",
            "x.y",
            "",
            "rollout.source.of",
        ]
        overrides = [f"{draw.choice(keys)}={_shown(draw.choice(VALUES))}"]
    return tree, overrides


def data_file(seed: int) -> bytes:
    """A JSONL file with mutated rows."""
    draw = random.Random(seed)
    rows: list[Any] = []
    for n in range(draw.randint(1, 4)):
        row: dict[str, Any] = {"prompt": f"{n} + 1", "answer": "2", "id": n, "domain": "d"}
        if draw.random() < 0.5:
            row = {"messages": [{"role": "user", "content": "hello"}], "tools": [{"name": "f"}], "answer": 5}
        for _ in range(draw.randint(0, 2)):
            _tree(draw, row)
        rows.append(row if draw.random() < 0.9 else draw.choice(VALUES))
    lines = [json.dumps(row, default=str, skipkeys=True).encode() for row in rows]
    joined = b"\n".join(lines)
    return _bytes(draw, joined) if draw.random() < 0.4 else joined


def _tree(draw: random.Random, tree: Any) -> None:
    """Change, remove or add a value somewhere inside."""
    place = tree
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and draw.random() < 0.7:
            place = place[key]
            continue
        match draw.randrange(4):
            case 0:
                del place[key]
            case 1 if isinstance(place, dict):
                place[draw.choice(["x", "type", "model", str(key) + "s", 5])] = copy.deepcopy(draw.choice(VALUES))
            case _:
                place[key] = copy.deepcopy(draw.choice(VALUES))
        return


def _text(draw: random.Random, text: str) -> str:
    parts = list(text)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(parts))
        parts[at : at + draw.randint(0, 5)] = draw.choice(
            [":", "[", "{", "- ", "\t", "&a ", "*a", "!!x ", "'", "\x07", "é", ""]
        )
    return "".join(parts)


def _bytes(draw: random.Random, content: bytes) -> bytes:
    parts = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(parts) + 1)
        parts[at : at + draw.randint(0, 3)] = draw.choice(
            [b"\xff", b"\n", b'"', b"{", b"[" * 2000, b"\\ud800", b"NaN", b"9" * 5000]
        )
    return bytes(parts)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
