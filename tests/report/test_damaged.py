"""The page of a folder with damaged, foreign or giant content: one row is lost, or one sentence is said."""

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import opd
from opd.errors import DataError, OpdError
from opd.report.data import run_data
from opd.report.page import write_report
from support.models import make_model
from support.small_runs import PROMPTS, small_run
from support.written_run import row, write_run

STRANGE = "".join(chr(c) for c in [*range(0xA1), 0x2028, 0x2029, 0x202E, 0xFEFF, 0xFFFF, 0x1F600, 0xE0041])


def append(folder: Path, line: bytes, name: str = "rollouts.jsonl") -> None:
    with (folder / name).open("ab") as file:
        file.write(line + b"\n")


DAMAGES: list[dict[str, Any]] = [
    {"text": ["a"]},
    {"own": [99]},
    {"own": "x"},
    {"student": {}},
    {"student": None},
    {"terms": [{}]},
    {"terms": 5},
    {"turns": [[1]]},
    {"turns": [5]},
    {"events": [5]},
    {"reward": "high"},
    {"ids": [1]},
    {"special": [-1]},
    {"of": "other"},
    {"n": "0"},
    {"n": [0]},
    {"step": True},
]


@pytest.mark.parametrize("change", DAMAGES, ids=str)
def test_a_row_of_another_shape_costs_that_row(change: dict[str, Any], tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    append(folder, json.dumps({**row(1, 7, "word", 8), **change}).encode())
    data = run_data(folder)
    assert len(data["rollouts"]) == 4
    assert write_report(folder).exists()


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b'{"step": 1, "of": "eval", "n": 9, "reward": NaN}',
        b'{"step": 1, "of": "again", "about": 5}',
        b"[]",
        b"5",
        b"[" * 50_000,
        b'{"step": 1, "text": "\\ud800"}',
        b'{"step": 1}',
    ],
)
@pytest.mark.parametrize("name", ["rollouts.jsonl", "metrics.jsonl", "states.jsonl"])
def test_a_broken_line_costs_that_line(line: bytes, name: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    append(folder, line, name)
    append(folder, json.dumps({"step": 1, "train": {"loss": "high"}, "event": 5}).encode(), "metrics.jsonl")
    data = run_data(folder)
    assert len(data["rollouts"]) == 4
    assert data["train"]["step"] == [0, 1]


def test_damaged_rows_are_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    append(folder, json.dumps({**row(1, 7, "word", 8), "student": {}}).encode())
    assert run_data(folder)["left_out"] == "1 damaged rows"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"5",
        b'{"a": NaN}',
        b'{"teacher": 5}',
        b'{"loss": {"signal": {"type": "full", "a": 1}}}',
        b'{"method": []}',
        b'{"method": [1]}',
        b'{"loss": {"divergence": 5}}',
        b'{"guards": 5}',
        b'{"eval": "x"}',
        b'{"teacher": {"models": 5}}',
        b'{"guards": {"recover": {"thresholds": {"x": 1}}}}',
    ],
)
@pytest.mark.parametrize("name", ["run.json", "result.json"])
def test_a_damaged_run_file_or_result_is_one_sentence(content: bytes, name: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).write_bytes(content)
    with suppress(DataError):  # any other error fails the test
        run_data(folder)
        write_report(folder)


def test_any_character_survives_writing_reading_and_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", text=STRANGE)
    data = run_data(folder)
    assert data["left_out"] == ""
    assert [prompt["prompt_text"] for prompt in data["prompts"]] == [STRANGE]
    text = write_report(folder).read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    found = json.loads(text[start : text.index("</script>", start)])
    assert found["runs"][0]["prompts"][0]["prompt_text"] == STRANGE


GIANTS = {
    "a token of 1 MB": {"text": "x" * 1_000_000, "tokens": 8},
    "a token of markup": {"text": "<" * 300_000, "tokens": 8},
    "many tokens": {"text": "<&>" * 40, "tokens": 20_000, "rollouts": 1, "steps": (0,)},
    "many steps": {"text": "w", "tokens": 4, "steps": tuple(range(3000))},
    "wide characters": {"text": "\U0001f600" * 20_000, "tokens": 40},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GIANTS)
def test_a_page_stays_below_5_mb(name: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", **GIANTS[name])  # type: ignore[arg-type]
    assert write_report(folder).stat().st_size < 5_000_000


@pytest.mark.slow
def test_a_long_run_with_many_metrics_and_events_stays_below_5_mb(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        for step in range(2, 20_000):
            file.write(json.dumps({"step": step, "train": {f"m{n}": random.random() for n in range(40)}}) + "\n")
            file.write(json.dumps({"step": step, "event": {"kind": "idle", "text": "x" * 500}}) + "\n")
    assert write_report(folder).stat().st_size < 5_000_000
    train = run_data(folder)["train"]
    assert train["step"][-1] == 19_999
    assert len({len(column) for column in [train["step"], *train["columns"].values()]}) == 1


def test_resume_names_a_damaged_run_file(tmp_path: Path) -> None:
    import opd

    for content in (b"", b"\xff", b"[1]", b'{"a": Infinity}'):
        (tmp_path / "run" / "checkpoints" / "000001").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "run.json").write_bytes(content)
        with pytest.raises(OpdError, match=r"run\.json' is damaged"):
            opd.train("hint", {"out": str(tmp_path / "run"), "log": []}, resume=True)


def test_a_page_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "report.html" / "mine").mkdir(parents=True)
    (out / "run.json").write_text("{}")
    opd.train(small_run(out), student=make_model(0), teacher=make_model(1), prompts=PROMPTS)
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["event"]["kind"] == "report"
    assert "report.html was not written: " in last["event"]["text"]


@pytest.mark.parametrize("content", ['{"best": 5}', '{"seconds": "x"}', '{"stopped_by": []}'])
def test_a_result_of_another_shape_is_one_sentence(content: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "result.json").write_text(content)
    with pytest.raises(DataError, match=r"result.json' was not written by opd\. Fix: "):
        run_data(folder)
