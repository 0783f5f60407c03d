"""Texts that come from outside cannot move the cursor, turn the order of others, or fill the terminal."""

from __future__ import annotations

import io
import unicodedata

import pytest
from rich.console import Console

from opd.output.callbacks import RunStart
from opd.output.terminal import LiveDisplay
from opd.output.visible import LONGEST, sentence, visible


def test_characters_without_a_shape_are_written_out() -> None:
    assert visible("a\x1b[2Jb\u202ec\u2066d\x00e\ud800\U000e0041\x85") == (
        "a\\x1b[2Jb\\u202ec\\u2066d\\x00e\\ud800\\U000e0041\\x85"
    )
    assert visible("ä\n\t😀 \u200d क्‍ष") == "ä\n\t😀 \u200d क्‍ष"


@pytest.mark.parametrize(
    "code", [0xAD, 0x34F, 0x115F, 0x180E, 0x206A, 0x3164, 0xFFA0, 0xFFF9, 0x1D173, 0xE0001, 0xE00FF]
)
def test_every_character_without_a_shape_is_written_out(code: int) -> None:
    assert visible(f"a{chr(code)}b") == f"a{chr(code).encode('unicode_escape').decode()}b"


def test_no_character_that_unicode_calls_a_format_or_control_is_left_but_those_that_have_a_shape() -> None:
    left = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) in ("Cc", "Cf", "Zl", "Zp", "Cs")]
    named = [unicodedata.name(c, "") for c in left if visible(c) == c and c not in "\t\n\u200c\u200d"]
    assert all(name.startswith(("ARABIC", "SYRIAC", "KAITHI", "EGYPTIAN")) for name in named)


def test_a_row_of_joiners_or_selectors_is_written_out_and_a_single_one_is_not() -> None:
    family, eye, persian = (
        "\U0001f469\u200d\U0001f467",
        "\U0001f441\ufe0f\u200d\U0001f5e8\ufe0f",
        "\u0645\u06cc\u200c\u062e",
    )
    assert visible(family + eye + persian) == family + eye + persian
    assert visible("a\u200c\u200d\u200c") == "a\u200c\\u200d\\u200c"
    assert visible("\U0001f600\U000e0158\U000e0155") == "\U0001f600\U000e0158\\U000e0155"


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
