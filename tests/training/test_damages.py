"""Checkpoints that were damaged after they were saved: named, passed over, never used."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import opd
from opd.errors import CheckpointError, ModelError, OpdError
from opd.loop import Loop
from opd.models.weights import trained
from opd.training.state import State
from support.altered import train_altered
from support.damages import damage
from support.models import make_model
from support.small_runs import PROMPTS, merged, small_run

HELD_OUT = [{"prompt": "q r", "answer": "k"}, {"prompt": "s t", "answer": "k"}, {"prompt": "o p", "answer": "k"}]


def train(
    out: Path, *, resume: bool = False, alter: Callable[[Loop], Loop] | None = None, **changes: Any
) -> opd.Result:
    few = {"prompts_per_step": 4, "max_new_tokens": 4}
    tree = small_run(out, checkpoint={"every": 2, "keep": 3}, eval={"every": 2}, rollout=few, report=None)
    return train_altered(
        alter,
        merged(tree, changes),
        student=make_model(0),
        teacher=make_model(1),
        prompts=PROMPTS,
        eval_prompts=HELD_OUT,
        resume=resume,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run with three checkpoints and the best weights; its own folder is beside it."""
    out = tmp_path_factory.mktemp("run") / "out"
    train(out)
    shutil.copytree(out, out.with_name("whole"))
    return out.with_name("whole")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with another seed."""
    out = tmp_path_factory.mktemp("foreign") / "out"
    train(out, seed=1)
    return out


@pytest.fixture
def out(whole: Path) -> Path:
    """The finished run's folder, as it was."""
    return restored(whole)


def restored(whole: Path) -> Path:
    out = whole.with_name("out")
    shutil.rmtree(out)
    shutil.copytree(whole, out)
    return out


def same(one: Path, other: Path) -> bool:
    mine, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return mine.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 64
    path.write_bytes(content)


def damages(out: Path) -> list[str]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["event"]["text"] for line in lines if line.get("event", {}).get("kind") == "damaged"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


@pytest.mark.slow
def test_two_hundred_random_damages_are_refused_or_recovered(whole: Path, foreign: Path) -> None:
    """A recovered run has the weights, the optimizer and the numbers of the step it continues from, bit for bit."""
    seen: Counter[str] = Counter()
    refused: list[str] = []
    kept: list[Loop] = []

    def keep(loop: Loop) -> Loop:
        kept.append(loop)
        return loop

    train(restored(whole), resume=True, alter=keep)
    loop = kept[0]
    for seed in range(200):
        out = restored(whole)
        what = damage(out / "checkpoints", foreign / "checkpoints", seed)
        newest = content(out / "checkpoints" / "000006")
        loop.state = State()
        loop.checkpoints.warnings.clear()
        try:
            loop.restore()
        except CheckpointError as error:
            refused.append(str(error))
            continue
        if loop.state.step:
            assert_at(loop, whole / "checkpoints" / f"{loop.state.step:06d}")
        if newest == content(whole / "checkpoints" / "000006"):
            seen["not needed"] += 1
            continue
        seen["recovered"] += 1
        assert loop.state.step < 6, what
        if newest and loop.state.step:
            assert any("'000006' is damaged" in text for text in loop.checkpoints.warnings), what
        if seen["recovered"] % 20 == 0:
            train(out, resume=True)
            assert same(out, whole), what
    assert seen == {"recovered": 135, "not needed": 26}
    assert len(refused) == 39
    assert all(". Fix: " in text and "\n" not in text for text in refused)


def assert_at(loop: Loop, folder: Path) -> None:
    """The loop holds what an undamaged checkpoint holds."""
    weights, optimizer = load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors")
    assert all(torch.equal(p, weights[name]) for name, p in trained(loop.student.model).items())
    assert all(torch.equal(t, optimizer[name]) for name, t in loop.optimizer.tensors().items())
    assert torch.equal(torch.get_rng_state(), load_file(folder / "rng.safetensors")["torch"])
    saved = State(**json.loads((folder / "state.json").read_text()))
    if not loop.state.best:  # deleted, which a warning names
        assert any("best weights" in text for text in loop.checkpoints.warnings)
        saved = replace(saved, best={}, best_step=0, stale=0)
    assert loop.state == saved


def test_a_damaged_checkpoint_is_named_and_the_run_continues_from_the_one_before(whole: Path, out: Path) -> None:
    flipped(out / "checkpoints" / "000006" / "model.safetensors")
    result = train(out, resume=True)
    assert same(out, whole)
    (text,) = damages(out)
    assert text.startswith(
        "checkpoint '000006' is damaged ('model.safetensors' has changed since it was written), so the run continues "
        "from '000004'; the damaged one is now '"
    )
    assert [event["kind"] for event in result.events] == ["damaged"]
    names = [path.name for path in (out / "checkpoints").iterdir()]
    assert sorted(names) == ["000002", "000004", "000006", "best", "damaged-000006"]
    train(out, resume=True)
    assert len(damages(out)) == 1


def test_a_checkpoint_of_another_run_is_not_used(whole: Path, foreign: Path, out: Path) -> None:
    shutil.rmtree(out / "checkpoints" / "000006")
    shutil.copytree(foreign / "checkpoints" / "000006", out / "checkpoints" / "000006")
    train(out, resume=True)
    assert same(out, whole)
    assert "'000006' is damaged (it is of another run)" in damages(out)[0]


def test_damaged_best_weights_are_refused_before_the_run_counts_on_them(whole: Path, out: Path) -> None:
    best = out / "checkpoints" / "best"
    flipped(best / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"best' cannot be used \('model.safetensors' has.*or delete it to go on"):
        train(out, resume=True)
    shutil.rmtree(best)
    train(out, resume=True)
    assert same(out, whole)
    assert "are not there any more: the best ones of later evaluations are kept" in damages(out)[0]


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"run": 5, "data": {}, "processes": [{}]}'])
def test_a_run_whose_provenance_is_damaged_is_not_resumed(out: Path, text: str | None) -> None:
    path = out / "provenance.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(CheckpointError, match=r"provenance.json' is missing or damaged.*Fix: restore the file from"):
        train(out, resume=True)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", [pipe, device, Path.mkdir])
@pytest.mark.parametrize("name", ["files.json", "state.json", "model.safetensors"])
def test_a_file_of_a_checkpoint_that_is_none_is_missing(
    name: str, kind: Callable[[Path], None], whole: Path, out: Path
) -> None:
    """A pipe or a device would never end."""
    path = out / "checkpoints" / "000006" / name
    path.unlink()
    kind(path)
    train(out, resume=True)
    assert same(out, whole)
    assert f"'000006' is damaged ('{name}' is missing)" in damages(out)[0]


@pytest.mark.parametrize("kind", [pipe, device, Path.mkdir])
@pytest.mark.parametrize("name", ["run.json", "provenance.json", ".lock", "checkpoints/best/files.json"])
def test_a_file_of_a_run_that_is_none_is_one_sentence(name: str, kind: Callable[[Path], None], out: Path) -> None:
    (out / name).unlink()
    kind(out / name)
    with pytest.raises(OpdError, match=r"is no file|is missing|Is a directory"):
        train(out, resume=True)


def test_a_damaged_checkpoint_is_no_model(out: Path, tmp_path: Path) -> None:
    folder, rows = out / "checkpoints" / "best", tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "q r", "answer": "k"}\n')
    flipped(folder / "model.safetensors")
    damaged = r"'.*best' is damaged, 'model.safetensors' has changed since it was written\. Fix: name"
    with pytest.raises(ModelError, match=f"model: {damaged}"):
        opd.evaluate(str(folder), str(rows))
    tree = small_run(tmp_path / "next", student=str(folder))
    with pytest.raises(ModelError, match=f"student: {damaged}"):
        opd.train(tree, teacher=make_model(1), prompts=PROMPTS)
    (folder / "files.json").unlink()
    assert opd.evaluate(str(folder), str(rows), max_new_tokens=4)["length"] > 0


def test_a_file_that_was_added_to_a_checkpoint_is_no_part_of_it(out: Path, tmp_path: Path) -> None:
    folder, rows = out / "checkpoints" / "best", tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "q r", "answer": "k"}\n')
    (folder / ".DS_Store").touch()
    assert opd.evaluate(str(folder), str(rows), max_new_tokens=4)["length"] > 0
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is damaged, 'adapter_config.json' does not belong to it"):
        opd.evaluate(str(folder), str(rows))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "files.json"])
def test_damaged_final_weights_are_no_model(out: Path, tmp_path: Path, name: str) -> None:
    """A flipped bit of the weights is a number like any other, and nothing else would see it."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "q r", "answer": "k"}\n')
    (out / "notes.txt").write_text("files of the run's owner change nothing")
    assert opd.evaluate(str(out), str(rows), max_new_tokens=4)["length"] > 0
    flipped(out / name)
    damaged = rf"'.*out' is damaged, '{name}' has changed since it was written\. Fix: name another"
    with pytest.raises(ModelError, match=f"model: {damaged}"):
        opd.evaluate(str(out), str(rows))
    with pytest.raises(ModelError, match=f"student: {damaged}"):
        opd.train(small_run(tmp_path / "next", student=str(out)), teacher=make_model(1), prompts=PROMPTS)


def test_a_run_that_is_lengthened_seals_its_model_again(out: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "q r", "answer": "k"}\n')
    (out / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="'adapter_config.json' does not belong to it"):
        opd.evaluate(str(out), str(rows))
    (out / "adapter_config.json").unlink()
    before = (out / "files.json").read_text()
    train(out, resume=True, optimizer={"steps": 8})
    assert (out / "files.json").read_text() != before
    assert opd.evaluate(str(out), str(rows), max_new_tokens=4)["length"] > 0
