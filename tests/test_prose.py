"""Phrases that a reader has to guess the meaning of are nowhere in the repository."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BANNED = (
    "so many",
    "where there are such",
    "where there is such",
    "by heart",
    "mend",
    "stands for itself",
    "nothing to say",
    "anything to say",
    "its like",
    "is told",
    "goes by",
    "a look",
    "a word",
    "as good as",
    "be it",
    "of its own kind",
)

PATTERN = re.compile(r"\b(" + "|".join(BANNED).replace(" ", r"[\s#]+") + r")\b(?!-)", re.IGNORECASE)
"""A phrase may stand across two lines of a comment."""

FOLDERS = ("src", "docs", "tests", "benchmarks", "examples", "README.md", "CONTRIBUTING.md")

SUFFIXES = {".py", ".md", ".yaml", ".js", ".css", ".html", ".toml"}

EXEMPT = {
    Path("tests/test_prose.py"),
    Path("docs/LOG.md"),  # a record of what was measured when, never written again
    Path("examples/tools/my_tools.py"),  # one of its functions counts letters in words
}


def files(folder: str) -> Iterator[Path]:
    """Text files of a folder, or the file of that name."""
    path = ROOT / folder
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in found:
        if file.suffix in SUFFIXES and file.relative_to(ROOT) not in EXEMPT:
            yield file


def banned(text: str) -> list[tuple[int, str]]:
    """Line and phrase of each find; names count too, with their underscores as spaces."""
    found = PATTERN.finditer(text.replace("_", " "))
    return [(text.count("\n", 0, match.start()) + 1, " ".join(match[0].replace("#", "").split())) for match in found]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_banned_phrase(folder: str) -> None:
    finds = [(file, find) for file in files(folder) for find in banned(file.read_text(encoding="utf-8"))]
    assert [f"{file.relative_to(ROOT)}:{line}: {phrase}" for file, (line, phrase) in finds] == []


def test_the_pattern_finds_phrases_across_lines_and_in_names_and_leaves_other_words() -> None:
    assert banned("ok\nThe number of so\n# many steps") == [(2, "so many")]
    assert banned("def test_with_the_mend() -> None: ...") == [(1, "mend")]
    assert banned("recommended, a wordy text, a word-level one, maybe italic, look") == []
