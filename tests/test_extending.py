"""The worked examples of ``docs/extending.md``, run as they stand: values of axes from a user's own module."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from opd.losses import DIVERGENCES
from support.command_line import command, process

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for language, _, text in BLOCKS if language == "sh" for line in text.splitlines()]
PYTHON = [text for language, name, text in BLOCKS if language == "python" and not name]

SHORT = ["optimizer.steps=1", "rollout.prompts_per_step=4", "log=[]", "report=false"]
FEW = [*SHORT, "eval.prompts.limit=8"]
"""Make a run take a few seconds."""


@pytest.fixture(autouse=True)
def _forget_what_was_registered() -> Iterator[None]:
    divergences, modules, path = dict(DIVERGENCES), set(sys.modules), list(sys.path)
    yield
    DIVERGENCES.clear()
    DIVERGENCES.update(divergences)
    sys.path[:] = path
    for name in sys.modules.keys() - modules:
        if name.startswith("my_"):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files as a user has them: in the working directory, which is not on the module search path."""
    for _, name, text in BLOCKS:
        if name:
            (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "src"))
    return tmp_path


def shown(part: str) -> list[str]:
    """The arguments of the page's command that contains this text."""
    (found,) = (line for line in COMMANDS if part in line)
    return shlex.split(found)[1:]


def result(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "result.json").read_text())
    return found


def test_the_page_has_the_files_and_commands_that_run_here() -> None:
    assert [name for _, name, _ in BLOCKS if name] == ["my_axes.py", "mine.yaml", "mine-pipeline.yaml", "my_task.py"]
    assert [line.split()[1:3] for line in COMMANDS] == [
        ["train", "mine.yaml"],
        ["train", "opd"],
        ["pipeline", "mine-pipeline.yaml"],
        ["train", "grpo"],
    ]
    assert len(PYTHON) == 2


@pytest.mark.slow
def test_view_divergence_and_engine_in_a_run_file(folder: Path) -> None:
    done = process(*shown("train mine.yaml"), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert result(folder / "runs" / "own")["steps"] == 2
    saved = json.loads((folder / "runs" / "own" / "run.json").read_text())
    assert saved["teacher"]["view"] == {"type": "my_axes:FirstWords", "shown": 6}
    assert saved["loss"]["divergence"]["type"] == "my_axes:CHI_SQUARED"
    assert saved["rollout"]["engine"] == {"type": "my_axes:Generate"}


@pytest.mark.slow
def test_a_run_with_own_values_is_resumed(folder: Path) -> None:
    assert command("train", "mine.yaml", *SHORT, "checkpoint.every=1", cwd=folder).returncode == 0
    done = command("train", "mine.yaml", *SHORT, "checkpoint.every=1", "--resume", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert result(folder / "runs" / "own")["steps"] == 1


@pytest.mark.slow
def test_a_signal_on_the_command_line(folder: Path) -> None:
    done = command(*shown("train opd"), *FEW, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert result(folder / "runs" / "likeliest")["steps"] == 1


def test_a_setting_of_an_own_value_is_checked(folder: Path) -> None:
    done = command("train", "opd", "loss.signal=my_axes:Likeliest", "loss.signal.last=0.5", cwd=folder)
    assert done.returncode == 2
    assert "unknown key 'loss.signal.last'; did you mean 'loss.signal.least'?" in done.stderr


def test_a_name_that_is_not_in_the_module_is_refused(folder: Path) -> None:
    done = command("train", "opd", "loss.signal=my_axes:Likely", cwd=folder)
    assert done.returncode == 2
    assert "loss.signal: 'my_axes:Likely' cannot be imported" in done.stderr


def test_a_value_of_another_axis_is_refused(folder: Path) -> None:
    done = command("train", "opd", "loss.signal=my_axes:FirstWords", cwd=folder)
    assert done.returncode == 2
    assert "'my_axes:FirstWords' is no subclass of" in done.stderr


@pytest.mark.slow
def test_own_values_in_a_pipeline(folder: Path) -> None:
    done = process(*shown("pipeline"), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = folder / "runs" / "mine-pipeline"
    assert [result(stages / name)["steps"] for name in ("first", "second")] == [2, 2]


@pytest.mark.slow
def test_a_task_with_a_shipped_recipe(folder: Path) -> None:
    done = command(*shown("train grpo"), *FEW, cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (folder / "runs" / "sums" / "metrics.jsonl").read_text().splitlines()]
    assert [kind for line in lines for kind in line if kind in ("train", "eval")] == ["eval", "train", "eval"]
    assert all(0 <= (line.get("eval") or line["train"])["accuracy"] <= 1 for line in lines if "event" not in line)


def test_the_checks_of_the_task(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    from opd.data.tasks import get_task

    task = get_task("my_task:Sums")
    prompt = task.prompts("train")[3]
    assert prompt.answer == "309"
    turn = {"role": "assistant"}
    assert task.step(prompt, [{**turn, "content": "; answer 3 0 9"}]).correct is True
    assert task.step(prompt, [{**turn, "content": "; answer 3 0 8"}]).correct is False
    assert task.step(prompt, [{**turn, "content": ""}]).correct is False


@pytest.mark.parametrize(
    "number", [pytest.param(0, id="objects", marks=pytest.mark.slow), pytest.param(1, id="checking_a_divergence")]
)
def test_python_on_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.syspath_prepend(str(folder))
    exec(PYTHON[number], {})
