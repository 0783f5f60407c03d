"""What a run was made with, and that it goes on with nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import opd
from opd.errors import CheckpointError
from opd.output import provenance
from opd.output.model_card import _on_the_hub
from opd.types import Prompt
from support.models import make_model
from support.small_runs import PROMPTS, merged, small_run

ROWS = [{**row, "id": f"r{n}", "answer": "k"} for n, row in enumerate(PROMPTS)]
HELD_OUT: list[dict[str, Any]] = [{"prompt": "q r", "answer": "k"}, {"prompt": "s t", "answer": "l"}]


def train(
    out: Path, rows: Any = ROWS, held_out: Any = HELD_OUT, *, models: tuple[int, int] = (0, 1), **settings: Any
) -> opd.Result:
    """Student and teacher by their seeds."""
    resume, steps = settings.pop("resume", False), settings.pop("steps", 2)
    tree = merged(small_run(out), {"optimizer": {"steps": steps}, "report": False, **settings})
    student, teacher = map(make_model, models)
    return opd.train(tree, student=student, teacher=teacher, prompts=rows, eval_prompts=held_out, resume=resume)


def test_versions_hardware_and_data_are_in_the_folder_and_the_card(tmp_path: Path) -> None:
    train(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "provenance.json").read_text())
    (process,) = saved["processes"]
    assert process["versions"]["torch"] == torch.__version__
    assert {"opd", "python", "transformers"} <= process["versions"].keys()
    assert process["hardware"]["device"]
    assert {key: digest["rows"] for key, digest in saved["data"].items()} == {"prompts": len(ROWS), "eval.prompts": 2}
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"torch {torch.__version__}" in card
    assert saved["data"]["eval.prompts"]["sha256"] in card
    assert "base_model" not in card  # a student from Python has no id on the hub
    train(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "provenance.json").read_text())["data"] == saved["data"]


@pytest.mark.parametrize(
    ("rows", "held_out", "sentence"),
    [
        (ROWS[::-1], HELD_OUT, "prompts: the rows are in another order than when"),
        ([{**ROWS[0], "answer": "m"}, *ROWS[1:]], HELD_OUT, "prompts: rows were changed after"),
        (ROWS[1:], HELD_OUT, r"prompts: .* was started with 32 rows, and there are 31 now.*Fix: restore"),
        (ROWS, HELD_OUT[::-1], r"eval\.prompts: the rows are in another order"),
    ],
)
def test_a_run_goes_on_with_the_same_data_only(tmp_path: Path, rows: Any, held_out: Any, sentence: str) -> None:
    train(tmp_path / "out")
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.json*")}
    with pytest.raises(CheckpointError, match=sentence):
        train(tmp_path / "out", rows, held_out, steps=3, resume=True)
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.json*")}
    assert train(tmp_path / "out", steps=3, resume=True).steps == 3


@pytest.mark.parametrize(
    ("settings", "models", "named"),
    [
        ({}, (0, 2), "teacher.model"),
        ({"lora": {"rank": 2}}, (2, 1), "student"),
        ({"loss": {"anchor": 0.1}}, (2, 1), "student"),
    ],
)
def test_a_run_goes_on_with_the_same_weights_only(
    tmp_path: Path, settings: dict[str, Any], models: tuple[int, int], named: str
) -> None:
    train(tmp_path / "out", **settings)
    with pytest.raises(CheckpointError, match=f"{named}: its weights are not those that .* Fix: load or serve"):
        train(tmp_path / "out", models=models, steps=3, resume=True, **settings)
    assert train(tmp_path / "out", steps=3, resume=True, **settings).steps == 3


def test_a_run_goes_on_with_the_same_chat_template_only(tmp_path: Path) -> None:
    tree = merged(small_run(tmp_path / "out"), {"optimizer": {"steps": 2}, "report": False})
    student, teacher = make_model(0), make_model(1)
    opd.train(tree, student=student, teacher=teacher, prompts=ROWS)
    longer = merged(tree, {"optimizer": {"steps": 3}})
    template = student.tokenizer.chat_template
    student.tokenizer.chat_template = f"{template} "
    with pytest.raises(CheckpointError, match=r"^student: its tokens or chat template are not those that .* Fix: load"):
        opd.train(longer, student=student, teacher=teacher, prompts=ROWS, resume=True)
    student.tokenizer.chat_template = template
    assert opd.train(longer, student=student, teacher=teacher, prompts=ROWS, resume=True).steps == 3


def test_weights_that_a_checkpoint_replaces_may_be_others(tmp_path: Path) -> None:
    train(tmp_path / "out")
    train(tmp_path / "whole", steps=3)
    train(tmp_path / "out", models=(2, 1), steps=3, resume=True)
    saved = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert saved[0] == saved[1]


def test_states_that_differ_by_rounding_are_of_the_same_weights(tmp_path: Path) -> None:
    out, old = tmp_path / "out", {"teacher.model": [1.0, -2.0, 0.5]}
    out.mkdir()
    provenance.note(out, {}, old, "cpu", resumed=False)
    provenance.note(out, {}, {"teacher.model": [1.01, -1.99, 0.5]}, "cpu", resumed=True)
    for other in ([1.5, -2.0, 0.5], [1.0, -2.0], "6f1c"):
        with pytest.raises(CheckpointError, match=r"teacher\.model: its weights"):
            provenance.note(out, {}, {"teacher.model": other}, "cpu", resumed=True)


def test_a_changed_version_is_an_event_and_the_process_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "out")
    monkeypatch.setattr(provenance, "version", lambda name: "9.9")
    train(tmp_path / "out", steps=3, resume=True)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    said = [line["event"]["text"] for line in lines if "event" in line]
    assert f"torch was {torch.__version__} and is 9.9, so the last bits of the weights may differ" in said
    assert len(json.loads((tmp_path / "out" / "provenance.json").read_text())["processes"]) == 2


def test_digests_read_tensors_and_do_not_depend_on_addresses() -> None:
    def digest(value: Any) -> Any:
        return provenance._digest([Prompt(id="a", text="b", data={"x": value})])

    assert digest(object()) == digest(object())
    assert digest(torch.ones(2)) == digest(torch.ones(2)) != digest(torch.zeros(2))
    assert digest(b"a") != digest(b"b")


@pytest.mark.parametrize(
    ("name", "there"), [("Qwen/Qwen3-0.6B", True), ("nano/math-base", False), ("/models/x", False), ("a b", False)]
)
def test_only_a_hub_id_is_metadata(name: str, there: bool) -> None:
    assert _on_the_hub(name) is there
