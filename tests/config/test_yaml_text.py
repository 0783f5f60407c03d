"""YAML is bounded: bombs, cycles, tags, dates and giants are refused at once, in files and as overrides."""

import time
from pathlib import Path

import pytest

from opd.config import yaml_text
from opd.config.read import read, split
from opd.errors import ConfigError

ANCHORS = "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 40))
MERGES = "\n".join(f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}, *m{n - 1}, *m{n - 1}]}}" for n in range(1, 40))
CHAIN = "\n".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 3000))

REFUSED = {
    "a bomb of aliases": (f"a0: &a0 [x, x]\n{ANCHORS}", "stands for more than 100,000 values"),
    "a bomb of merges": (f"m0: &m0 {{x: 1}}\n{MERGES}", "stands for more than 100,000 values"),
    "a nested list of seven anchors": (
        "prompts:\n"
        + "\n".join(f"- &p{n} [{', '.join([f'*p{n - 1}'] * 9) or 'x'}]" for n in range(1, 8)).replace("*p0", "x"),
        "stands for more than 100,000 values",
    ),
    "a chain of aliases": (f"a0: &a0 [x]\n{CHAIN}", "more than 50 values inside each other"),
    "a cycle": ("a: &a [*a]", "stands for more than 100,000 values"),
    "deep nesting": ("a: " + "[" * 900 + "]" * 900, "line 1 has more than 50 values inside each other"),
    "deep blocks": ("\n".join(" " * n + "a:" for n in range(900)), "line 50 has more than 50 values inside each other"),
    "an integer tag": ("a: !!int x", "line 1 has the tag 'tag:yaml.org,2002:int'"),
    "a date tag": ("a: !!timestamp x", "has the tag"),
    "a switch tag": ("a: !!bool maybe", "has the tag"),
    "a Python tag": ("a: !!python/object/apply:os.system [ls]", "has the tag"),
    "a tag of its own": ("a: ! x", "has the tag '!'"),
    "a long integer": (f"a: {'9' * 5000}", "line 1 has an integer of 5,000 digits"),
    "a long hexadecimal": (f"a: 0x{'f' * 5000}", "has an integer of 5,002 digits"),
    "a giant": ("a: " + "x" * 1_000_001, "more than 1,000,000 characters"),
    "a key twice": ("a: 1\nb: 2\na: 3", "'a' stands twice, on lines 1 and 3"),
    "two documents": ("a: 1\n---\nb: 2", "expected a single document"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_more_than_a_run_file_needs_is_refused_at_once(name: str, tmp_path: Path) -> None:
    text, why = REFUSED[name]
    file = tmp_path / "run.yaml"
    file.write_text(text)
    started = time.process_time()
    with pytest.raises(ConfigError, match="not valid YAML: ") as caught:
        read(file)
    assert why in str(caught.value)
    assert time.process_time() - started < 3
    if "\n" not in text:
        assert split(text.replace(": ", "=", 1)) == ("a", text.removeprefix("a: "))


def test_a_mapping_on_the_command_line_that_is_no_yaml_is_refused_and_a_template_is_text() -> None:
    for value in ("{judge: m, rubric: Is it kind?}", "[{function: f, weight: 1]"):
        with pytest.raises(ConfigError, match=r"^prompts.reward: '.*' is no YAML. Fix: close its brackets"):
            split(f"prompts.reward={value}")
    assert split("teacher.view.text={prompt} Answer: {answer}") == ("teacher.view.text", "{prompt} Answer: {answer}")


@pytest.mark.parametrize("date", ["2026-13-45", "2026-11-28", "2026-11-28 10:00:00"])
def test_a_date_is_text(date: str) -> None:
    assert yaml_text.parse(f"a: {date}") == {"a": date}
    assert split(f"out={date}") == ("out", date)


def test_what_run_files_have_is_read() -> None:
    text = "base: &base {lr: 1e-3, steps: 5}\noptimizer: {<<: *base, steps: 0x10, warmup: null}"
    assert yaml_text.parse(text)["optimizer"] == {"lr": "1e-3", "steps": 16, "warmup": None}
    assert yaml_text.parse("") is None


def test_a_file_without_an_end_is_not_read_to_it(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="not valid YAML: it has more than 1,000,000 characters"):
        read(tmp_path / "run.yaml")


@pytest.mark.parametrize("template", ["{tools:>1000000000}", "{tools.__class__}", "{tools[0]}", "{tools!r}", "{", "{}"])
def test_a_template_of_hints_has_plain_fields_only(template: str) -> None:
    author = {"type": "rules", "templates": {"unknown_tool": template}}
    with pytest.raises(ConfigError, match=r"teacher\.view\.author\.templates: the template of unknown_tool"):
        read("hint", {"teacher.view.author": author})
