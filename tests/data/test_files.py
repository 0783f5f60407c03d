"""Prompts in the files and forms that people have them in, and the sentence for what cannot be read."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from opd.config.run import PromptsConfig
from opd.data.files import read_rows
from opd.data.prompts import HELD_OUT, load_prompts
from opd.errors import DataError
from opd.types import Prompt

SEPARATORS = "a\u2028b\u2029c\u0085d\x0be\x1cf"
ROWS: list[dict[str, Any]] = [{"prompt": SEPARATORS, "answer": "007"}, {"prompt": 'say "1,5"\nor 2', "answer": "x"}]


def jsonl(path: Path) -> Path:
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in ROWS).encode("utf-8-sig"))
    return path


def zipped(path: Path) -> Path:
    path.write_bytes(gzip.compress(jsonl(path).read_bytes()))
    return path


def json_list(path: Path) -> Path:
    path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=1), encoding="utf-8-sig")
    return path


def comma_separated(path: Path) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ("prompt", "answer", "id"))
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def parquet(path: Path) -> Path:
    datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    return path


def loaded(given: Any, **settings: Any) -> list[Prompt]:
    config = PromptsConfig.model_validate({**PromptsConfig.source(str(given)), **settings})
    return load_prompts(config, key="prompts", has_template=True)[0]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", jsonl),
        ("a.jsonl.gz", zipped),
        ("a.json", jsonl),
        ("b.json", json_list),
        ("A.CSV", comma_separated),
        ("a.parquet", parquet),
    ],
)
def test_every_kind_of_file_gives_the_same_prompts(tmp_path: Path, name: str, write: Callable[[Path], Path]) -> None:
    prompts = loaded(write(tmp_path / name))
    assert [p.messages for p in prompts] == [({"role": "user", "content": row["prompt"]},) for row in ROWS]
    assert [(p.id, p.answer, p.data) for p in prompts] == [("1", "007", {}), ("2", "x", {})]
    assert len(loaded(tmp_path / name, limit=1)) == 1


def test_a_folder_of_files_and_one_saved_by_datasets(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    parquet(tmp_path / "files" / "a.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    for name in ("files", "saved"):
        assert [p.answer for p in loaded(tmp_path / name)] == ["007", "x"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"prompt": "\xff"}', "cannot read .*utf-8.*Fix: give the path of a UTF-8 file"),
        ("a.jsonl", b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}", "line 1 of .* is not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1 of .* is not JSON"),
        ("a.jsonl", b'{"prompt": "a\\ud83d"}', "line 1 of .* is not JSON .a text has half of a character"),
        ("a.jsonl.gz", b'{"prompt": "a"}', "cannot read .*gzip"),
        ("a.json", b'[{"prompt": "a"}, 5]', "item 2 of .* is not an object"),
        ("a.json", b'[{"prompt": "a"}', "is not JSON"),
        ("a.json", b'{"data": []}', "has the columns 'data'"),
        ("a.csv", b"prompt,answer\na,1,2\n", "row 1 has more cells than the first line"),
        ("a.csv", b"prompt,answer\na\nb,1\n", "row 1 has fewer cells than the first line has names. Fix: .* newline"),
        ("a.csv", b"prompt,answer,prompt\na,1,b\n", "two columns have the name 'prompt'. Fix: rename one"),
        ("a.csv", b'prompt\n"a', "is not CSV"),
        ("a.json", b'{\n "data": []\n}', "has the columns 'data'"),
        ("a.csv", b"prompt\n", "has no rows"),
        ("a.parquet", b"PAR1", "is not Parquet"),
        ("a.txt", b"a", "is a file of no known kind. Fix: give a file in .jsonl"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"(?s)^prompts: .*{words}"):
        loaded(tmp_path / name)


def test_one_object_over_several_lines_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{\n "prompt": "a",\n "answer": "b"\n}\n')
    assert [(p.messages, p.answer) for p in loaded(tmp_path / "a.json")] == [(({"role": "user", "content": "a"},), "b")]


def test_folders_that_hold_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prompts: folder '.*' has no data. Fix: "):
        loaded(tmp_path)
    with pytest.raises(DataError, match="prompts: there is no folder './nowhere'. Fix: "):
        loaded("./nowhere")
    with pytest.raises(DataError, match="prompts: '.*' is a folder. Fix: write prompts.dataset="):
        load_prompts(PromptsConfig(path=str(tmp_path)), key="prompts", has_template=True)


def test_a_folder_of_all_kinds_of_files_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opd.data.prompts.MOST_FILES", 20)
    for number in range(30):
        (tmp_path / f"{number}.json").write_text("{}")
    with pytest.raises(DataError, match="prompts: folder '.*' has more than 20 files and folders, so it is no dataset"):
        load_prompts(PromptsConfig(dataset=str(tmp_path)), key="prompts", has_template=True)


def test_columns_by_their_names_in_the_source(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {"question": "2 + 2", "prompt": "x", "truth": {"value": 4, "more": 1}, "answer": "no", "level": 3}
    path.write_text(json.dumps(row))
    (prompt,) = loaded(path, columns={"prompt": "question", "answer": "truth.value"})
    assert (prompt.messages, prompt.answer) == (({"role": "user", "content": "2 + 2"},), "4")
    assert prompt.data == {"prompt": "x", "truth": {"value": 4, "more": 1}, "answer": "no", "level": 3}
    with pytest.raises(DataError, match=r"prompts.columns.answer: no row has 'anser' \(they have 'question', 'prompt'"):
        loaded(path, columns={"answer": "anser"})
    with pytest.raises(DataError, match=r"without the 'task' of prompts.columns. Fix: correct prompts.columns.prompt"):
        loaded(path, columns={"prompt": "task"})
    path.write_text('{"question": "a", "answer": "b"}')
    with pytest.raises(
        DataError, match=r"the columns 'question', 'answer'. Fix: .* prompts.columns={prompt: question}"
    ):
        loaded(path)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [{"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"messages": [{"role": "human", "content": "Hi"}]},
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]},
        {"messages": '[{"role": "user", "content": "Hi"}]'},
    ],
)
def test_conversations_as_other_tools_write_them(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    usual = {"messages": "conversations", "answer": "completion"}
    columns = {column: name for column, name in usual.items() if name in row}
    (prompt,) = loaded(tmp_path / "a.jsonl", columns=columns)
    assert prompt.messages == ({"role": "user", "content": "Hi"},)
    assert prompt.answer == ("Hello" if "Hello" in str(row) else None)


def test_what_was_left_out_is_reported_once() -> None:
    ends: list[dict[str, Any]] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": ends, "source": "s"}, {"messages": ends, "answer": "own", "level": 1}]
    notes: list[str] = []
    prompts, _ = load_prompts(PromptsConfig(path="x"), rows, key="prompts", has_template=True, note=notes.append)
    assert [p.answer for p in prompts] == ["b", "own"]
    assert notes == [
        "prompts: 2 conversations end with the assistant; that turn is left out, and is the reference answer where "
        "there is no other",
        "prompts: columns that only tasks, rewards and templates read: 'source', 'level'",
    ]


def test_nulls_that_a_table_adds_to_tools_and_calls_are_left_out(tmp_path: Path) -> None:
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"properties": {name: {"type": "string"}}}}}
        for name in ("f", "g")
    ]
    rows = [{"prompt": "a", "tools": [tool]} for tool in tools]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    assert [p.tools for p in loaded(tmp_path / "a.parquet")] == [(tool,) for tool in tools]
    given = datasets.Dataset.from_list(rows)
    prompts, _ = load_prompts(PromptsConfig(path="x"), given, key="prompts", has_template=True)
    assert [p.tools for p in prompts] == [(tool,) for tool in tools]


def splits(*names: str) -> datasets.DatasetDict:
    return datasets.DatasetDict({name: datasets.Dataset.from_list([{"prompt": name}]) for name in names})


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("names", "settings", "training", "held_out"),
    [
        (("train", "test"), {}, "train", "test"),
        (("train", "validation"), {}, "train", "validation"),
        (("train",), {}, "train", "train"),
        (("train", "test"), {"split": "train"}, "train", "train"),
    ],
)
def test_held_out_prompts_come_from_the_test_or_validation_split(
    tmp_path: Path, given: bool, names: tuple[str, ...], settings: dict[str, str], training: str, held_out: str
) -> None:
    for expected, order in ((training, ("train",)), (held_out, HELD_OUT)):
        config = PromptsConfig(dataset=str(tmp_path / "d"), **settings)
        if given:
            prompts, _ = load_prompts(config, splits(*names), key="prompts", has_template=False, splits=order)
        else:
            splits(*names).save_to_disk(str(tmp_path / "d"))
            prompts, _ = load_prompts(config, key="prompts", has_template=False, splits=order)
        assert [p.text for p in prompts] == [expected]


def test_a_split_of_a_folder_of_files(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}))
    config = PromptsConfig(dataset=str(tmp_path))
    for order, expected in ((("train",), "train"), (HELD_OUT, "test")):
        prompts, _ = load_prompts(config, key="prompts", has_template=False, splits=order)
        assert [p.text for p in prompts] == [expected]
    with pytest.raises(
        DataError, match=r"prompts.split: dataset .* has no split val \(it has (train, test|test, train)"
    ):
        loaded(tmp_path, split="val")


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    splits("dev", "other").save_to_disk(str(tmp_path / "d"))
    for settings, lacks in (({"split": "val"}, "val"), ({}, "train")):
        with pytest.raises(
            DataError, match=rf"prompts.split: .* no split {lacks} \(it has dev, other\). Fix: name one"
        ):
            loaded(tmp_path / "d", **settings)


def test_random_json_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rng = random.Random(0)
    letters = "a\"\\,\n\r\t \u2028\u0085🙂é\ufeff'"
    texts = ["x" + "".join(rng.choices(letters, k=20)) for _ in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": t}, ensure_ascii=False) + "\n" for t in texts))
    assert [(p.messages or ({},))[0]["content"] for p in loaded(tmp_path / "a.jsonl")] == texts


def test_a_device_or_a_pipe_is_no_file_of_rows(tmp_path: Path) -> None:
    (tmp_path / "endless.jsonl").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("endless.jsonl", "pipe.jsonl"):
        with pytest.raises(DataError, match=r"is a device or a pipe, which may have no end\. Fix: write"):
            list(read_rows(str(tmp_path / name), key="prompts"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.jsonl.gz"])
def test_a_line_that_no_memory_would_hold_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opd.data.files.LONGEST_LINE", 1000)
    monkeypatch.setattr("opd.data.files.LONGEST_JSON", 1000)
    text = "prompt\n" + "x" * 2000 if "csv" in name else json.dumps({"prompt": "x" * 2000})
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    with pytest.raises(DataError, match=r"more than 1,000 characters\. Fix: "):
        list(read_rows(str(tmp_path / name), key="prompts"))
