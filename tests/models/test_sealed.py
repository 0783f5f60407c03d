"""Sealed folders: whatever differs from what was sealed is named, the seal's own file included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from opd.models.sealed import FILES, digest, opened, seal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "one.safetensors").write_bytes(b"1")
    (tmp_path / "two.safetensors").write_bytes(b"2")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "three.json").write_text("{}")
    seal(tmp_path, run="a run", weights="one.safetensors")
    return tmp_path


def changed_list(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / FILES
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def replaced(folder: Path) -> None:
    """A file is changed, and its digest with it."""
    (folder / "one.safetensors").write_bytes(b"3")
    content = json.loads((folder / FILES).read_text())
    content["sha256"]["one.safetensors"] = digest(folder / "one.safetensors")
    (folder / FILES).write_text(json.dumps(content))


def test_an_unchanged_folder_has_its_facts(folder: Path) -> None:
    (folder / ".DS_Store").touch()
    assert opened(folder) == {"run": "a run", "weights": "one.safetensors"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (changed_list(weights="two.safetensors"), "'files.json' has changed since it was written"),
        (changed_list(run="another"), "'files.json' has changed since it was written"),
        (changed_list(seal="0" * 64), "'files.json' has changed since it was written"),
        (replaced, "'files.json' has changed since it was written"),
        (lambda folder: (folder / "deep" / "three.json").unlink(), "'deep/three.json' is missing"),
        (lambda folder: (folder / "deep" / "three.json").write_text("[]"), "'deep/three.json' has changed since"),
        (lambda folder: (folder / "deep" / "four.json").touch(), "'deep/four.json' does not belong to it"),
        (lambda folder: (folder / FILES).unlink(), "'files.json' is missing"),
    ],
)
def test_a_change_is_named(folder: Path, change: Callable[[Path], None], sentence: str) -> None:
    change(folder)
    with pytest.raises(ValueError, match=sentence):
        opened(folder)
