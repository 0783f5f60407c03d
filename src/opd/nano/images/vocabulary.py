"""The words of the nano images. Imports nothing, so every module may import it."""

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
"""Name of a two-colour style, which occurs in pretraining only with a reference image."""

PAD, UNKNOWN, END = "<|pad|>", "<|unknown|>", "<|end|>"
WORDS = (*COLOURS, *SHAPES, *NUMBERS, "dot", "dots", "digit", CONCEPT)
# The end token is last: CLIP models treat an end token of id 2 as a known bug of old configs, and pool elsewhere.
TOKENS = (PAD, UNKNOWN, *WORDS, END)
