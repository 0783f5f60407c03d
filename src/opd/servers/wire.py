"""The wire format of hidden states: that of vLLM's pooling servers, and what `opd serve` adds to it.

A question holds the token ids of some sequences. The answer is their last hidden states as raw little-endian bytes, one
sequence after the other; a header says where each begins and ends. `opd serve` also takes the rows that are wanted
(the others are not sent) and blocks whose states are wanted instead.

Source: vLLM 0.32, ``POST /pooling`` with ``task: token_embed`` and ``encoding_format: bytes``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opd.data import strict_json
from opd.servers.http import Answer
from opd.servers.requests import WrongAnswer

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

METADATA = "metadata"
"""Name of the header."""

OPD = "opd"
"""Field of a question, of a header and of a listed model with what vLLM does not have."""

FEW = 4
"""Fewer states may have length 1 by chance."""

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]
"""Token ids of each sequence, and the positions whose states are wanted, in order."""


@dataclass(frozen=True)
class Item:
    """One sequence's states in an answer: bytes ``start`` to ``end``, of this shape."""

    start: int
    end: int
    shape: tuple[int, ...]


def question(model: str, inputs: Sequence[Sequence[int]], dtype: str) -> dict[str, Any]:
    """A question for all states of some sequences, which every server understands."""
    return {
        "model": model,
        "input": [list(ids) for ids in inputs],
        "task": "token_embed",
        "use_activation": False,  # otherwise vLLM normalises each state
        "encoding_format": "bytes",
        "embed_dtype": dtype,
        "endianness": "little",
    }


def ranges(rows: Sequence[int]) -> list[list[int]]:
    """Rising positions as half-open ranges."""
    found: list[list[int]] = []
    for row in rows:
        if found and found[-1][1] == row:
            found[-1][1] = row + 1
        else:
            found.append([row, row + 1])
    return found


def metadata(items: Sequence[Item], *, model: str, tokens: int, weights: str) -> str:
    """The header of an answer of `opd serve`."""
    data = [
        {"index": index, "start": item.start, "end": item.end, "shape": list(item.shape)}
        for index, item in enumerate(items)
    ]
    return json.dumps(
        {"model": model, "data": data, "usage": {"prompt_tokens": tokens}, OPD: {"weights": weights}},
        separators=(",", ":"),
    )


def tensors(answer: Answer, dtype: str, *, tokens: int, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The states of each sequence.

    Args:
        tokens: number of all tokens that were asked about.
        shapes: of each sequence's states.

    Raises:
        WrongAnswer: anything else came.
    """
    head, size = header(answer), DTYPES[dtype].itemsize
    try:
        read = head["usage"]["prompt_tokens"]
        items = sorted((one["index"], one["start"], one["end"], tuple(one["shape"])) for one in head["data"])
    except (KeyError, TypeError):
        raise WrongAnswer("its header does not say where the states are") from None
    if read != tokens:
        raise WrongAnswer(f"it read {read} tokens of {tokens}")
    if [index for index, *_ in items] != list(range(len(shapes))):
        raise WrongAnswer(f"it answered {len(items)} sequences of {len(shapes)}")
    found, place = [], 0
    for (_, start, end, shape), expected in zip(items, shapes, strict=True):
        if shape != expected:
            raise WrongAnswer(f"states have the shape {list(shape)} in place of {list(expected)}")
        count = 1
        for n in expected:
            count *= n
        if start != place or end != start + size * count:
            raise WrongAnswer("its header does not fit the states' size")
        place = end
        body = bytearray(answer.body[start:end])
        if len(body) != end - start:
            raise WrongAnswer(f"it sent {len(answer.body)} bytes, and its header speaks of more")
        states = torch.frombuffer(body, dtype=DTYPES[dtype]).view(expected) if body else torch.empty(expected)
        found.append(states)
    if place != len(answer.body):
        raise WrongAnswer(f"it sent {len(answer.body)} bytes in place of {place}")
    check(found)
    return found


def header(answer: Answer) -> Any:
    """The metadata of an answer.

    Raises:
        WrongAnswer: there is none.
    """
    try:
        return strict_json.parse(answer.headers[METADATA])
    except (KeyError, ValueError):
        raise WrongAnswer(f"it sent no states: {answer.text[:100]}") from None


def check(found: Sequence[Tensor]) -> None:
    """States are finite, and their lengths have not been made 1.

    Raises:
        WrongAnswer: they are not.
    """
    whole = [states.float().flatten(0, -2) for states in found if states.numel()]
    if not whole:
        return
    states_TD = torch.cat(whole)
    if not bool(states_TD.isfinite().all()):
        raise WrongAnswer("states are not finite")
    if len(states_TD) >= FEW and bool(((states_TD.norm(dim=-1) - 1).abs() < 1e-2).all()):
        raise WrongAnswer("states are normalised (start vLLM with --pooler-config and use_activation false)")
