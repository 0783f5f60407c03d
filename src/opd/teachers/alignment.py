"""Where two tokenizers agree: groups of tokens with the same text, and tokens that mean the same text.

A token's text is what it adds to the text before it. That is read off the tokenizer's own decoder, so it holds for
leading-space marks (Ġ, ▁), for word-level tokenizers whose decoder puts the spaces in, and for byte-level ones, some of
whose tokens are only a part of a character.

White space alone never keeps two tokenizers apart: whether a space ends a token or begins the next is a habit, so
groups are cut by counting the other characters. A token of nothing but white space belongs to the group after it: what
decides between going on with one word and beginning the next is then in the same group on both sides. Where both sides
have such a token (a newline, an indentation), it is a group of its own.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from opd.types import Span

BROKEN = "\ufffd"
"""What a decoder writes for bytes that are not a whole character, or not yet."""

REMEMBERED = 2**17
"""Pairs of neighbours whose text is kept; a step meets the same ones again and again."""


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""How Llama's tokenizers spell a byte of a character that they have no token for."""


class Piece(NamedTuple):
    """Consecutive tokens, as few as make whole characters, and what they add to the text."""

    span: Span
    text: str


class Group(NamedTuple):
    """The same text on both sides but for white space: places in the ids that the pieces were made of."""

    student: Span
    teacher: Span


class TokenTexts:
    """What each of a tokenizer's tokens adds to a text.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.added = lru_cache(REMEMBERED)(self._added)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, special ones left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def pieces(self, ids: Sequence[int], context_ids: Sequence[int] = ()) -> Iterator[Piece]:
        """The text of every token, in time that grows with their number.

        A token is decoded behind the piece before it alone, which is all that decoders look at: whether a text begins
        there, and bytes of a character that are still open. Tokens at the end whose character stays open have no piece.

        Args:
            ids: tokens without special ones.
            context_ids: what stands before them; without any, the first token begins a text.
        """
        before, start = tuple(context_ids), 0
        for stop in range(1, len(ids) + 1):
            new = tuple(ids[start:stop])
            text = self.added(before, new)
            if text is not None:
                yield Piece(Span(start, stop), text)
                before, start = new, stop

    def _added(self, before: tuple[int, ...], new: tuple[int, ...]) -> str | None:
        text, prefix = self.decode(before + new), self.decode(before)
        return text[len(prefix) :] if text.startswith(prefix) and not text.endswith(BROKEN) else None


def groups(student: Sequence[Piece], teacher: Sequence[Piece]) -> list[Group]:
    """The smallest stretches that both sides read as whole pieces, in order, up to where the texts part.

    Args:
        student, teacher: each side's pieces from the first on.
    """
    sides = [list(student), list(teacher)]
    agreed = _common_length(*(_visible("".join(piece.text for piece in side)) for side in sides))
    ends = [list(accumulate(len(_visible(piece.text)) for piece in side)) for side in sides]
    common = sorted(end for end in {*ends[0]} & {*ends[1]} if 0 < end <= agreed)
    # A cut is behind the first piece that ends there: pieces of white space alone, which end there too, come after it.
    cuts = [[0, *(bisect_left(side_ends, end) + 1 for end in common)] for side_ends in ends]
    found: list[Group] = []
    for (a, b), (c, d) in zip(pairwise(cuts[0]), pairwise(cuts[1]), strict=True):
        found += _split(sides[0][a:b], sides[1][c:d])
    left = [side[cut[-1] :] for side, cut in zip(sides, cuts, strict=True)]
    return found + list(_split(*(side[: _num_blank(side)] for side in left)))


def match(student: TokenTexts, teacher: TokenTexts, *, opening: bool) -> tuple[list[int], list[int]]:
    """The tokens with the same text in both vocabularies, as two lists of ids.

    First by the whole text, space in front included. Of what is left on both sides, those that differ by white space
    alone are matched too, such as the digits of a tokenizer that never joins a space to them.

    Args:
        opening: compare what tokens say at the beginning of a text, where some decoders leave a space out; else in the
            middle.
    """
    ours, theirs = (_by_text(texts, opening=opening) for texts in (student, teacher))
    pairs = {ours[text]: theirs[text] for text in ours if text in theirs}
    left = [
        _unique({text: i for text, i in side.items() if text not in other})
        for side, other in ((ours, theirs), (theirs, ours))
    ]
    pairs |= {left[0][text]: left[1][text] for text in left[0] if text in left[1]}
    return sorted(pairs), [pairs[i] for i in sorted(pairs)]


def _common_length(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _visible(text: str) -> str:
    return "".join(text.split())


def _split(student: list[Piece], teacher: list[Piece]) -> Iterator[Group]:
    """One group, or two where both sides begin with the same white space in tokens of its own."""
    a, b = _num_blank(student), _num_blank(teacher)
    blank = ["".join(piece.text for piece in side) for side in (student[:a], teacher[:b])]
    if blank[0] and blank[0] == blank[1]:
        yield _group(student[:a], teacher[:b])
        student, teacher = student[a:], teacher[b:]
    if _num_blank(student) < len(student):
        yield _group(student, teacher)


def _num_blank(side: Sequence[Piece]) -> int:
    """How many pieces of white space alone come first."""
    return next((i for i, piece in enumerate(side) if piece.text.strip()), len(side))


def _group(student: Sequence[Piece], teacher: Sequence[Piece]) -> Group:
    return Group(*(Span(side[0].span.start, side[-1].span.stop) for side in (student, teacher)))


def _by_text(texts: TokenTexts, *, opening: bool) -> dict[str, int]:
    """Ids by what they say; of several the one that the tokenizer itself would write, else the lowest.

    Special tokens decode to nothing, and bytes and other parts of characters to no text of their own: these are
    compared by name.
    """
    tokenizer = texts.tokenizer
    before = () if opening else tuple(tokenizer("a", add_special_tokens=False)["input_ids"])
    prefix = texts.decode(before)
    found: dict[str, list[int]] = {}
    for name, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        text = "" if _BYTE.fullmatch(name) else texts.decode((*before, i)).removeprefix(prefix)
        found.setdefault(f"\0{name}" if not text or BROKEN in text else text, []).append(i)
    return {text: ids[0] if len(ids) == 1 else _written(tokenizer, text, ids) for text, ids in found.items()}


def _written(tokenizer: Any, text: str, ids: Sequence[int]) -> int:
    encoded = tokenizer(text, add_special_tokens=False)["input_ids"]
    return encoded[0] if len(encoded) == 1 and encoded[0] in ids else ids[0]


def _unique(by_text: dict[str, int]) -> dict[str, int]:
    """Ids by their text without white space, where only one has it."""
    found: dict[str, list[int]] = {}
    for text, i in by_text.items():
        found.setdefault(text.strip(), []).append(i)
    return {text: ids[0] for text, ids in found.items() if len(ids) == 1 and text and not text.startswith("\0")}
