"""The code that the documentation shows runs as it stands."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from opd.losses import DIVERGENCES

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True)
def _forget_what_was_registered() -> Iterator[None]:
    before = dict(DIVERGENCES)
    yield
    DIVERGENCES.clear()
    DIVERGENCES.update(before)


def test_extending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(python|yaml)\n(.*?)^```$", (DOCS / "extending.md").read_text(), re.DOTALL | re.MULTILINE)
    assert [language for language, _ in blocks] == ["python", "python", "yaml", "python"]
    space: dict[str, object] = {}
    for language, code in blocks:
        if language == "yaml":
            (tmp_path / "example.yaml").write_text(code)
        else:
            exec(code, space)
