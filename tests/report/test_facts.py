"""What the page says about a run without its rollouts: settings, time, best weights, differences, waiting."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from opd.report import view
from opd.report.data import run_data
from opd.report.facts import differing, facts, times
from support.written_run import write_run


def test_facts_name_student_teachers_authors_and_servers() -> None:
    config: dict[str, Any] = {
        "student": "my/model",
        "lora": {"rank": 8},
        "teacher": {
            "models": {"maths": {"model": "a/b", "domains": ["math"]}, "rest": {"model": "c/d"}},
            "view": {"type": "hint", "author": {"type": "http", "url": "http://localhost:1/v1", "model": "critic"}},
        },
        "loss": {"signal": {"type": "full"}, "anchor": 0.2, "reward": {"weight": 1e-6}},
        "rollout": {"prompts_per_step": 4, "rollouts_per_prompt": 8, "max_new_tokens": 32},
        "optimizer": {"lr": 5e-6},
    }
    found = list(facts(config, "reverse KL"))
    assert ("student", "my/model, adapters of rank 8 are trained (LoRA)") in found
    assert ("teacher", "maths: a/b, on prompts of math") in found
    assert ("teacher", "rest: c/d") in found
    assert ("hints by", "http (critic, http://localhost:1/v1)") in found
    assert ("loss", "reverse KL, 0.2 × KL to the initial weights, 1e-6 × rewards") in found
    assert ("a step", "4 prompts × 8 rollouts, at most 32 tokens, learning rate 5e-6") in found
    assert ("server", "http://localhost:1/v1 (teacher.view.author.url)") in found


def test_times_are_parts_of_the_whole_run_and_new_parts_are_named() -> None:
    steps = [{"rollout_s": 1.0, "update_s": 2.0, "push_s": 0.5, "loss": 3.0}] * 2
    found = {part["name"]: part["seconds"] for part in times(steps, 10.0)}
    assert found == {"rollouts": 2.0, "update": 4.0, "push": 1.0, "evaluation, report, checkpoints": 3.0}
    assert sum(part["seconds"] for part in times(steps, None)) == 7.0
    assert times([{"loss": 1.0}], 5.0) == []


@pytest.mark.parametrize(
    ("accuracies", "best"), [((0.2, 0.9, 0.7), 1), ((0.2, 0.9, 0.9), 2), ((0.5, 0.4, 0.3), 0), ((0.1, 0.2, 0.3), 2)]
)
def test_the_best_step_is_the_last_unless_an_earlier_one_was_better(
    accuracies: tuple[float, ...], best: int, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run")
    lines = [{"step": step, "eval": {"accuracy": accuracy}} for step, accuracy in enumerate(accuracies)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run_data(run)["best_step"] == best


def test_curves_have_the_tokens_and_seconds_up_to_each_step(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    timed = {"tokens": 100.0, "rollout_s": 0.5, "teacher_s": 0.25, "update_s": 0.25}
    lines: list[dict[str, Any]] = [{"step": 0, "eval": {"accuracy": 0.1}}]
    lines += [{"step": step, "train": timed} for step in (1, 2)]
    lines += [{"step": 2, "eval": {"accuracy": 0.2}}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = run_data(run)
    assert (data["train"]["tokens"], data["train"]["seconds"]) == ([100, 200], [1.0, 2.0])
    assert (data["eval"]["tokens"], data["eval"]["seconds"]) == ([0, 200], [0.0, 2.0])


def test_differing_keys_have_each_runs_value_and_leave_out_folder_and_recipe() -> None:
    one = {"out": "a", "method": {"title": "x"}, "optimizer": {"lr": 1e-3, "steps": 5}, "lora": None}
    two = {"out": "b", "method": {"title": "y"}, "optimizer": {"lr": 1e-4, "steps": 5}, "lora": {"rank": 8}}
    assert differing([one, two]) == [("optimizer.lr", [1e-3, 1e-4]), ("lora.rank", [None, 8])]
    assert differing([one, {**one, "out": "c"}]) == []


def test_a_live_page_waits_for_a_run_that_has_not_begun(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    folder = tmp_path / "run"
    threading.Timer(0.2, lambda: write_run(folder)).start()
    view._wait(console, folder)
    assert (folder / "run.json").is_file()
    assert isinstance(console.file, io.StringIO)
    assert f"waiting  for a run to begin in {folder}" in console.file.getvalue()
