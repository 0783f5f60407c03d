"""A reasoning model's thoughts, which are no part of its answer."""

from __future__ import annotations

import re
from itertools import chain, zip_longest

_CLOSING = {"<think>": "</think>", "[THINK]": "[/THINK]"}
_OPENING = re.compile("|".join(map(re.escape, _CLOSING)))
_CLOSED = re.compile(r".*(?:</think>|\[/THINK\]|<\|channel\|>final<\|message\|>)", re.DOTALL)
_OPEN = re.compile(r"(?:<think>|\[THINK\]).*", re.DOTALL)


def thoughts(text: str) -> list[tuple[int, int]]:
    """The thoughts in an assistant turn, as ranges of characters in order.

    They are the blocks ``<think>…</think>`` and ``[THINK]…[/THINK]``, and whatever comes before a closing mark that has
    no opening one, because reasoning templates may open the block in the prompt; before ``<|channel|>final<|message|>``
    too. A block that was never closed reaches to the end.
    """
    found = _blocks(text)
    rest = _blank(text, found)
    if closed := _CLOSED.match(rest):
        found = [closed.span(), *(span for span in found if span[0] >= closed.end())]
        rest = _blank(text, found)
    if opened := _OPEN.search(rest):
        found.append(opened.span())
    return found


def without_thoughts(text: str) -> str:
    """An assistant turn without its thoughts and without white space around the rest."""
    return "".join(_outside(text, thoughts(text))).strip()


def blank_thoughts(text: str) -> str:
    """An assistant turn with spaces in place of its thoughts, so that every other character keeps its place."""
    return _blank(text, thoughts(text))


def _blocks(text: str) -> list[tuple[int, int]]:
    """The blocks that are opened and closed, in time that grows with the text's length alone."""
    found: list[tuple[int, int]] = []
    end, open_to_the_end = 0, set()
    for opened in _OPENING.finditer(text):
        if opened.start() < end or opened[0] in open_to_the_end:
            continue
        closed = text.find(_CLOSING[opened[0]], opened.end())
        if closed < 0:
            open_to_the_end.add(opened[0])
        else:
            end = closed + len(_CLOSING[opened[0]])
            found.append((opened.start(), end))
    return found


def _blank(text: str, spans: list[tuple[int, int]]) -> str:
    kept = _outside(text, spans)
    return "".join(chain.from_iterable(zip_longest(kept, (" " * (b - a) for a, b in spans), fillvalue="")))


def _outside(text: str, spans: list[tuple[int, int]]) -> list[str]:
    """The pieces of a text before, between and after some ranges of it."""
    starts, stops = [0, *(stop for _, stop in spans)], [*(start for start, _ in spans), len(text)]
    return [text[start:stop] for start, stop in zip(starts, stops, strict=True)]
