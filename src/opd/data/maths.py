"""Whether two LaTeX expressions are equal, by math-verify in a process of its own."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from opd.data.worker import Worker

WORKER = Path(__file__).with_name("maths_worker.py")

LONGEST = 1000
"""Characters of an expression above which it is not compared: no answer is that long."""


_WORKER = Worker(WORKER)


@lru_cache(maxsize=65_536)
def equal(answer: str, reference: str) -> bool:
    """Whether two LaTeX expressions are equal; False where that cannot be decided within three seconds of computing."""
    return max(len(answer), len(reference)) <= LONGEST and _WORKER.ask([answer, reference]) == "true"


def latex(text: str) -> str:
    """A cleaned text with plain-text notation in LaTeX's: ``sqrt(2)``, ``x**2``, ``x^10``, ``<=``, ``pi``."""
    text = text.replace("**", "^").replace("<=", r"\le ").replace(">=", r"\ge ")
    text = re.sub(r"(?<!\\)\bsqrt\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\^(-?\d{2,}|-\d|\([^()]*\))", r"^{\1}", text)
    return re.sub(r"(?<![\\A-Za-z])(pi|sin|cos|tan|log|ln|exp)\b", r"\\\1", text)
