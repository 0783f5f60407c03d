"""One image of a whole run: labelled rows of sample images, with prompts as column headings. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SIZE = (96, 256)
"""Smallest and largest width of an image, pixels; a smaller image is enlarged by a whole factor."""

FONT = 13
LEADING = 17
PAD = 10
LABELS = 116
"""Width of the rows' labels, pixels."""

HEADING = 4
"""Largest number of lines of a prompt."""

INK = (29, 31, 36)
MUTED = (98, 102, 111)


@dataclass(frozen=True)
class Block:
    """Rows of images with common headings; a row is a label and its images."""

    headings: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Any]]]


def overview(blocks: Sequence[Block]) -> Any:
    """All blocks below each other, as one PIL image on white."""
    from PIL import Image

    sheets = [_block(block) for block in blocks if block.rows]
    whole = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white")
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


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
    """The displayed width and height of an image."""
    least, most = SIZE
    if image.width < least:
        times = -(-least // image.width)
        return image.width * times, image.height * times
    share = min(most / image.width, 1.0)
    return round(image.width * share), max(round(image.height * share), 1)


def scaled(image: Any, size: tuple[int, int]) -> Any:
    """A resized PIL image; an enlarged one keeps its pixels visible."""
    from PIL import Image

    how = Image.Resampling.NEAREST if size[0] >= image.width else Image.Resampling.LANCZOS
    return image.resize(size, how)


def wrapped(text: str, width: float, length: Any, lines: int) -> list[str]:
    """A text wrapped into lines; text beyond the last line is cut.

    Args:
        width: largest width of a line.
        length: function that returns the width of a text.
        lines: largest number of lines.
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
