"""Texts that come from outside cannot move the cursor, turn the order of others, or fill the terminal."""

from __future__ import annotations

import io

from rich.console import Console

from opd.output.callbacks import RunStart
from opd.output.terminal import LiveDisplay
from opd.output.visible import LONGEST, sentence, visible


def test_characters_without_a_shape_are_written_out() -> None:
    assert visible("a\x1b[2Jb\u202ec\u2066d\x00e\ud800\U000e0041\x85") == (
        "a\\x1b[2Jb\\u202ec\\u2066d\\x00e\\ud800\\U000e0041\\x85"
    )
    assert visible("ä\n\t😀 \u200d क्‍ष") == "ä\n\t😀 \u200d क्‍ष"


def test_a_sentence_is_one_line_of_bounded_length() -> None:
    assert sentence("a\nb\r\nc\u2028d") == "a b c d"
    assert len(sentence("x" * 60_000)) <= LONGEST + 3


def test_an_event_of_a_hostile_text_is_one_line_in_the_terminal(tmp_path: object) -> None:
    from pathlib import Path

    console = Console(file=io.StringIO(), width=200, emoji=False)
    display = LiveDisplay(console)
    display.start(RunStart(Path("out"), step=0, steps=5, evaluates=True))
    display.event(1, "gate", "a:b:c [red]x[/] \x1b[31m\u202e\nsecond")
    display.stop()
    assert isinstance(console.file, io.StringIO)
    assert "a:b:c [red]x[/] \\x1b[31m\\u202e second" in console.file.getvalue()
