"""The words of the image world: imports nothing, so that every part may read them."""

from __future__ import annotations

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.15, 0.75, 0.20),
    "blue": (0.15, 0.30, 0.95),
    "yellow": (0.95, 0.90, 0.15),
    "cyan": (0.15, 0.85, 0.90),
    "white": (0.95, 0.95, 0.95),
}
"""Named colours, as RGB in [0, 1]."""

SHAPES = ("circle", "square", "triangle", "cross", "diamond", "bar")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MAX_COUNT = 5
CONCEPT = "zorp"
"""A style of two colours, seen in training only next to a image that shows it."""

PAD, UNKNOWN, END = "<|pad|>", "<|unknown|>", "<|end|>"
WORDS = (*COLOURS, *SHAPES, *NUMBERS, "dot", "dots", "digit", CONCEPT)
# CLIP models treat an end token of id 2 as a sign of a historic mistake, and look elsewhere.
TOKENS = (PAD, UNKNOWN, *WORDS, END)
