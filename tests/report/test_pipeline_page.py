"""The page of a pipeline as a file, and the command ``opd view``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from opd.cli import app
from opd.errors import DataError, OpdError
from opd.report.pipeline import pipeline_data, write_pipeline_page
from support.written_run import HOSTILE, write_run

DONE: dict[str, Any] = {
    "before": {"accuracy": 0.25},
    "after": {"accuracy": 0.5},
    "best": {"accuracy": 0.5},
    "steps": 4,
    "tokens": 1000,
}


def stage(kind: str = "train", inputs: tuple[str, ...] = (), state: str = "done", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "title": kind, "inputs": inputs, "state": state, "problem": None, **more}


def write_pipeline(folder: Path, **stages: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "pipeline.json").write_text(json.dumps({"config": {}, "seconds": 3.0, "stages": stages}))
    return folder


def embedded(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])


def test_stages_have_their_metrics_and_links(tmp_path: Path) -> None:
    metrics = {"stage:one": {"accuracy": 0.5, "length": 3.0}, "nano/math-base": {"accuracy": 0.25}}
    folder = write_pipeline(
        tmp_path / "out",
        one=stage(**DONE, seconds=7.0),
        two=stage(inputs=("one",), state="failed", problem="stage 'two': no room"),
        scores=stage("eval", ("one",), metrics=metrics),
    )
    write_run(folder / "one")
    (folder / "one" / "report.html").write_text("")
    one, two, scores = pipeline_data(folder)["stages"]
    assert (one["metric"], one["before"], one["after"]) == ("accuracy", "25.0%", "50.0%")
    assert one["course"] == [[0, 0.5], [1, 0.51]]
    assert (one["report"], two["report"], scores["report"]) == ("one/report.html", None, None)
    assert (two["problem"], two["inputs"]) == ("stage 'two': no room", ["one"])
    (table,) = pipeline_data(folder)["tables"]
    assert table["columns"] == ["accuracy", "length"]
    rows = {row["model"]: row["cells"] for row in table["rows"]}
    assert rows == {"one": [["50.0%", True], ["3.000", False]], "nano/math-base": [["25.0%", False], ["", False]]}


def test_links_are_relative_to_the_page(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "a" / "out", one=stage())
    (folder / "one").mkdir()
    (folder / "one" / "report.html").write_text("")
    page = write_pipeline_page(folder, tmp_path / "page.html")
    assert embedded(page)["stages"][0]["report"] == "a/out/one/report.html"


def test_hostile_text_never_becomes_markup(tmp_path: Path) -> None:
    metrics = {HOSTILE: {HOSTILE: 0.5}}
    hostile = stage("eval", (HOSTILE,), HOSTILE, problem=HOSTILE, metrics=metrics)
    page = write_pipeline_page(write_pipeline(tmp_path / "<b>out", **{HOSTILE: hostile}))
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text
    assert "<title>&lt;b&gt;out</title>" in text
    assert embedded(page)["stages"][0]["name"] == HOSTILE
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy
    assert "default-src 'none'" in policy[1]
    assert "connect-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]


def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no pipeline of opd"):
        pipeline_data(tmp_path)
    (tmp_path / "pipeline.json").write_text("[]")
    with pytest.raises(DataError, match="has unexpected content"):
        pipeline_data(tmp_path)


def view(*words: Path | str) -> str:
    """The output of ``opd view``."""
    done = CliRunner().invoke(app, ["view", "--no-browser", *map(str, words)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_writes_the_page_of_a_run_of_several_and_of_a_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two")
    assert str(one / "report.html") in view(one).replace("\n", "")
    assert [run["name"] for run in embedded(one / "report.html")["runs"]] == ["one"]
    view(one, two)
    assert [run["name"] for run in embedded(tmp_path / "report.html")["runs"]] == ["one", "two"]
    view(one, "--out", tmp_path / "other.html")
    assert embedded(tmp_path / "other.html")["runs"][0]["name"] == "one"
    pipeline = write_pipeline(tmp_path / "pipe", first=stage(**DONE))
    view(pipeline)
    assert embedded(pipeline / "report.html")["stages"][0]["name"] == "first"
    assert [p.name for p in tmp_path.glob(".*")] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "'nothing' is no run of opd"),
        (["pipe", "one"], "'pipe' is a pipeline and cannot be shown beside others"),
        (["one", "--out", "no/such/folder.html"], "cannot write 'no/such/folder.html'"),
    ],
)
def test_the_command_refuses_impossible_pages_in_one_sentence(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "one")
    write_pipeline(tmp_path / "pipe", first=stage())
    with pytest.raises(OpdError, match=re.escape(said)):
        view(*words)


def test_a_metric_without_a_finite_value_is_an_empty_cell(tmp_path: Path) -> None:
    metrics = {"stage:one": {"accuracy": None, "length": 3.0}, "stage:two": {"accuracy": 0.5, "length": None}}
    one = stage(before={"accuracy": 0.5}, after={"accuracy": None}, best={})
    folder = write_pipeline(tmp_path / "out", one=one, scores=stage("eval", ("one",), metrics=metrics))
    assert pipeline_data(folder)["stages"][0]["after"] == ""
    (table,) = pipeline_data(folder)["tables"]
    assert table["columns"] == ["length", "accuracy"]
    assert [row["cells"] for row in table["rows"]] == [[["3.000", False], ["", False]], [["", False], ["50.0%", True]]]


@pytest.mark.parametrize(
    "content",
    ["[]", '{"stages": {"a": 5}}', '{"stages": {"a": {"kind": "eval", "metrics": [1]}}}', "\xff", "[" * 10_000],
)
def test_a_damaged_file_of_a_pipeline_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "pipeline.json").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match="has unexpected content"):
        pipeline_data(tmp_path)


@pytest.mark.slow
def test_the_page_of_a_giant_pipeline_stays_below_5_mb(tmp_path: Path) -> None:
    metrics = {f"m{n}": {f"accuracy/{k}": 0.5 for k in range(200)} for n in range(60)}
    stages = {f"s{n}": {**stage(**DONE), "problem": "<" * 5_000} for n in range(1500)}
    folder = write_pipeline(tmp_path / "out", **stages, scores=stage("eval", metrics=metrics))
    tree = json.loads((folder / "pipeline.json").read_text())
    tree["config"] = {"k": ["v" * 3000] * 2000}
    (folder / "pipeline.json").write_text(json.dumps(tree))
    write_run(folder / "s1")
    lines = (json.dumps({"step": n, "eval": {"accuracy": 0.5}}) + "\n" for n in range(5000))
    (folder / "s1" / "metrics.jsonl").write_text("".join(lines))
    page = write_pipeline_page(folder)
    assert page.stat().st_size < 5_000_000
    assert len(embedded(page)["stages"]) == 1501
