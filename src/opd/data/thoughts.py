"""A reasoning model's thoughts, which are no part of its answer."""

from __future__ import annotations

import re

_WHOLE = re.compile(r"<think>.*?</think>|\[THINK\].*?\[/THINK\]", re.DOTALL)
_CLOSED = re.compile(r".*(?:</think>|\[/THINK\]|<\|channel\|>final<\|message\|>)", re.DOTALL)
_OPEN = re.compile(r"(?:<think>|\[THINK\]).*", re.DOTALL)


def thoughts(text: str) -> list[tuple[int, int]]:
    """The thoughts in an assistant turn, as ranges of characters in order.

    They are the blocks ``<think>…</think>`` and ``[THINK]…[/THINK]``, and whatever comes before a closing mark that has
    no opening one, because reasoning templates may open the block in the prompt; before ``<|channel|>final<|message|>``
    too. A block that was never closed reaches to the end.
    """
    found = [match.span() for match in _WHOLE.finditer(text)]
    rest = _blank(text, found)
    if closed := _CLOSED.match(rest):
        found = [closed.span(), *(span for span in found if span[0] >= closed.end())]
        rest = _blank(text, found)
    if opened := _OPEN.search(rest):
        found.append(opened.span())
    return found


def without_thoughts(text: str) -> str:
    """An assistant turn without its thoughts and without white space around the rest."""
    for start, stop in reversed(thoughts(text)):
        text = text[:start] + text[stop:]
    return text.strip()


def blank_thoughts(text: str) -> str:
    """An assistant turn with spaces in place of its thoughts, so that every other character keeps its place."""
    return _blank(text, thoughts(text))


def _blank(text: str, spans: list[tuple[int, int]]) -> str:
    for start, stop in spans:
        text = text[:start] + " " * (stop - start) + text[stop:]
    return text
