"""``ORG/NAME@REVISION`` names a branch, tag or commit of a hub model, here in a cache that is already filled."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.errors import ModelError
from opd.models.bundled import resolve
from opd.models.loading import load
from support.models import make_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of two commits of one model; the branch ``other`` is the second."""
    folder = tmp_path / "models--org--tiny"
    for seed, commit in enumerate((COMMIT, COMMIT[::-1])):
        make_model(seed).save(folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "other").write_text(COMMIT[::-1])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder / "snapshots"


def test_a_revision_is_the_folder_of_its_files(cache: Path) -> None:
    for revision, commit in ((COMMIT, COMMIT), ("other", COMMIT[::-1])):
        assert resolve(f"org/tiny@{revision}") == str(cache / commit)
    weight = load("org/tiny@other", key="student").head_VD
    assert weight.equal(load(str(cache / COMMIT[::-1]), key="student").head_VD)
    assert not weight.equal(load(str(cache / COMMIT), key="student").head_VD)


def test_an_unknown_revision_is_one_sentence(cache: Path) -> None:
    with pytest.raises(ModelError, match=r"^cannot load revision 'v9' of 'org/tiny' \(.*\). Fix: check both names"):
        load("org/tiny@v9", key="student")


def test_a_folder_with_such_a_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("org/tiny@other").mkdir(parents=True)
    assert resolve("org/tiny@other") == "org/tiny@other"
