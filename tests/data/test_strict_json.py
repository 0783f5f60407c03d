"""One reader of JSON: lines end with a newline alone, and what JSON lacks is refused."""

import json
from pathlib import Path

import pytest

from opd.data import strict_json
from opd.output.run_log import rewind
from opd.report.files import read_lines

SEPARATORS = "a\u2028b\u2029c\u0085d\x0b\x0c\x1c\x1d\x1ee"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": NaN}', "NaN is no JSON"),
        ("[-Infinity]", "-Infinity is no JSON"),
        ("1e999", "1e999 is too large"),
        ("9" * 5000, "an integer has 5,000 digits"),
        ("[" * 100_000, "too many values inside each other"),
        ('{"a": ' * 100_000, "too many values inside each other"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('"\\ud800"', "half of a character"),
        ('{"\\uDFFF": 1}', "half of a character"),
        ('{"a": [{"b": "x\\ud83dy"}]}', "half of a character"),
        (b'"\xff"', "byte 2 is not UTF-8"),
        ("{", "Expecting property name enclosed in double quotes at character 2"),
    ],
)
def test_what_json_lacks_is_refused(text: str | bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        strict_json.parse(text)


def test_whole_characters_and_numbers_are_read() -> None:
    assert strict_json.parse('{"a": ["\\ud83d\\ude00", 1e300, 12345678901234567890, "1e999 \\\\ud800"]}') == {
        "a": ["😀", 1e300, 12345678901234567890, "1e999 \\ud800"]
    }


def test_separators_inside_a_text_do_not_end_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"step": step, "text": SEPARATORS} for step in range(4)]
    path.write_text(
        "\ufeff" + "".join(json.dumps(row, ensure_ascii=False).replace("\\u001", "\\u001") + "\n" for row in rows)
    )
    assert read_lines(path) == rows
    rewind(path, 1)
    assert read_lines(path) == rows[:2]


def test_a_broken_line_costs_that_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n5\n{"step": "x"}\n{"step": 2}\n{"st')
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
    rewind(path, 5)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
