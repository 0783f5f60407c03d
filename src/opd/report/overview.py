"""One image of a whole run: rows of sample images with labels, under their prompts as headings. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SIZE = (96, 256)
"""Pixels that a image is at least and at most wide; a small one is blown up by a whole number."""

FONT = 13
LEADING = 17
PAD = 10
LABELS = 116
"""Pixels for the rows' labels."""

HEADING = 4
"""Lines that a prompt may take."""

INK = (29, 31, 36)
MUTED = (98, 102, 111)


@dataclass(frozen=True)
class Block:
    """Rows of images with common headings; a row is a label and its images."""

    headings: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Any]]]


def overview(blocks: Sequence[Block]) -> Any:
    """All blocks one under the other as one PIL image on white."""
    from PIL import Image

    parts = [_block(block) for block in blocks if block.rows]
    sheet = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def _block(block: Block) -> Any:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=FONT)
    width, height = fitted(block.rows[0][1][0])
    columns = len(block.headings)
    heads = [wrapped(text, width, font.getlength, HEADING) for text in block.headings]
    top = PAD + LEADING * max(map(len, heads)) + 6
    size = (LABELS + columns * (width + PAD) + PAD, top + len(block.rows) * (height + PAD))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        draw.text((LABELS + column * (width + PAD), PAD), "\n".join(head), INK, font, spacing=LEADING - FONT)
    for row, (label, images) in enumerate(block.rows):
        y = top + row * (height + PAD)
        lines = wrapped(label, LABELS - 2 * PAD, font.getlength, HEADING)
        draw.text((PAD, y), "\n".join(lines), MUTED, font, spacing=LEADING - FONT)
        for column, image in enumerate(images):
            sheet.paste(scaled(image, (width, height)), (LABELS + column * (width + PAD), y))
    return sheet


def fitted(image: Any) -> tuple[int, int]:
    """The width and height that a image is shown with."""
    least, most = SIZE
    if image.width < least:
        times = -(-least // image.width)
        return image.width * times, image.height * times
    share = min(most / image.width, 1.0)
    return round(image.width * share), max(round(image.height * share), 1)


def scaled(image: Any, size: tuple[int, int]) -> Any:
    """A PIL image of another size: a blown-up one keeps its pixels visible."""
    from PIL import Image

    how = Image.Resampling.NEAREST if size[0] >= image.width else Image.Resampling.LANCZOS
    return image.resize(size, how)


def wrapped(text: str, width: float, length: Any, lines: int) -> list[str]:
    """A text in lines that are at most so wide; what does not fit into the last is cut off.

    Args:
        length: width of a line.
    """
    found = [""]
    for word in text.split():
        spaced = f"{found[-1]} {word}".strip()
        if length(spaced) <= width:
            found[-1] = spaced
            continue
        if found[-1]:
            found.append("")
        for letter in word:
            if length(found[-1] + letter) > width:
                found.append("")
            found[-1] += letter
    if len(found) <= lines:
        return found
    last = found[lines - 1]
    while last and length(f"{last}…") > width:
        last = last[:-1]
    return [*found[: lines - 1], f"{last}…"]
