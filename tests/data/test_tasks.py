"""``get_task``: built-in names, the user's own, and what it says when there is neither."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from opd.config.tasks import TASKS
from opd.data.tasks import get_task
from opd.diffusion.data import image_task
from opd.errors import ConfigError
from opd.nano.tasks.tools import ToolsTask

own = ToolsTask()
number = 3


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_built_in_task_has_three_splits(name: str) -> None:
    task = get_task(name)
    for split in ("train", "val", "test"):
        prompts = task.prompts(split)
        assert {p.domain for p in prompts} == {name}
        assert len({p.id for p in prompts}) == len(prompts)
        assert all(p.messages and p.answer for p in prompts)


def test_a_class_and_an_instance_by_their_dotted_path() -> None:
    assert isinstance(get_task("opd.nano.tasks.tools:ToolsTask"), ToolsTask)
    assert get_task(f"{__name__}:own") is own


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "tolls",
            r"prompts.task: there is no task 'tolls'; did you mean 'tools'\? Fix: give math, search, strings, tools or",
        ),
        ("opd.nothing:Task", r"cannot be imported: No module named"),
        ("opd.data.tasks:Nothing", r"cannot be imported: .* no attribute"),
        (f"{__name__}:number", r"is a int. Fix: name a task"),
        ("os:system", r"prompts.task: 'os:system' cannot be called .*Fix: name a task"),
        ("collections:Counter", r"makes a Counter, which has no prompts\(\) and no step\(\). Fix"),
    ],
)
def test_a_wrong_name_is_one_clear_sentence(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_task(name)


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a module, as the ``opd`` command finds it: not on the module search path."""
    (tmp_path / "beside.py").write_text(
        "from opd.nano.tasks.images import Images\nfrom opd.nano.tasks.tools import ToolsTask\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "beside", raising=False)


def test_a_task_in_the_working_directory_is_found(beside: None) -> None:
    assert isinstance(get_task("beside:ToolsTask"), ToolsTask)


def test_an_image_task_in_the_working_directory_is_found(beside: None) -> None:
    assert image_task("beside:Images", key="prompts.task").prompts("test")


@pytest.mark.slow
def test_prompts_are_the_same_in_every_process() -> None:
    code = (
        "from opd.config.tasks import TASKS; from opd.data.tasks import get_task; print("
        "[(p.messages, p.answer) for t in TASKS for p in get_task(t).prompts('val')[:20]])"
    )
    here = [(p.messages, p.answer) for t in TASKS for p in get_task(t).prompts("val")[:20]]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}  # sets have another order there
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, env=environment)
    assert there.stdout == f"{here}\n"
