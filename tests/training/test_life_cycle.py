"""Runs that start, stop and are found again: signals, folders, checkpoints as models, more steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import opd
from opd.errors import CheckpointError, ConfigError
from opd.models.language import LanguageModel
from opd.output.log_lines import LogLines
from opd.training.interrupts import Interrupted, noticed
from support.command_line import command
from support.interrupt import Interrupt
from support.models import make_model
from support.small_runs import PROMPTS, merged, small_run


class Signals(Interrupt):
    """Sends signals to this process after a step."""

    def __init__(self, at: int, *numbers: signal.Signals) -> None:
        super().__init__(at)
        self.numbers = numbers

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.at:
            for number in self.numbers:
                os.kill(os.getpid(), number)


def train(
    out: Path, *, student: LanguageModel | None = None, more: Mapping[str, Any] = {}, **changes: Any
) -> opd.Result:
    tree = merged(small_run(out, checkpoint={"every": 4}), changes)
    return opd.train(tree, student=student or make_model(0), teacher=make_model(1), prompts=PROMPTS, **more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    theirs = weights(other)
    return all(torch.equal(tensor, theirs[name]) for name, tensor in weights(one).items())


@pytest.fixture(autouse=True)
def _none_is_ignored() -> Iterator[None]:
    """A shell's background job ignores SIGINT, and one under nohup SIGHUP; a run leaves ignored signals ignored."""
    ignored = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_step_and_loses_nothing(
    tmp_path: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "whole")
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"interrupted by {number.name} after step 3, with a checkpoint in") as end:
        train(tmp_path / "cut", more={"callbacks": [Signals(3, number)]})
    assert end.value.number == number
    assert signal.getsignal(number) is before
    assert f"{number.name}: the run saves a checkpoint after this step and ends" in capfd.readouterr().err
    assert sorted(p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()) == ["000000", "000003"]
    train(tmp_path / "cut", more={"resume": True})
    assert same(tmp_path / "cut", tmp_path / "whole")


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="ended at once by SIGTERM"):
        train(tmp_path / "cut", more={"callbacks": [Signals(3, signal.SIGINT, signal.SIGTERM)]})
    assert [p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()] == ["000000"]


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with noticed("the run ends") as asked:
            os.kill(os.getpid(), signal.SIGHUP)
        assert asked.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_says_what_happened_and_how_to_go_on(
    tmp_path: Path, number: signal.Signals, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Display(LogLines):
        def step(self, step: int, metrics: dict[str, float]) -> None:
            os.kill(os.getpid(), number)

    monkeypatch.setattr("opd.output.terminal.LogLines", Display)
    overrides = ["optimizer.steps=3", "rollout.prompts_per_step=4", "eval.prompts=null", "log=[]", "out=run"]
    done = command("train", "hint", *overrides, cwd=tmp_path)
    assert done.returncode == status
    sentence = f"interrupted by {number.name} after step 1, with a checkpoint in 'run/checkpoints/000001'; go on with"
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupt_before_the_first_step_is_said_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("opd.api.load", interrupted)
    done = command("train", "hint", cwd=tmp_path)
    assert done.returncode == 130
    assert done.stderr.strip() == "interrupted"


class Broken(Interrupt):
    """A display with a mistake of its user's."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.at:
            raise ZeroDivisionError


def test_an_error_before_the_first_checkpoint_leaves_the_folder_free(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "out", more={"callbacks": [Broken(2)]})
    (tmp_path / "out" / "notes.txt").write_text("mine")
    train(tmp_path / "out", optimizer={"lr": 1e-3})
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    train(tmp_path / "fresh", optimizer={"lr": 1e-3})
    assert same(tmp_path / "out", tmp_path / "fresh")
    lines = [(tmp_path / name / "metrics.jsonl").read_text().count("\n") for name in ("out", "fresh")]
    assert lines[0] == lines[1]


def test_a_finished_run_without_its_checkpoints_is_not_trained_over(tmp_path: Path) -> None:
    train(tmp_path / "out")
    (tmp_path / "out" / "checkpoints").rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match="already holds a run"):
        train(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"finished run without checkpoints\. Fix: choose another out"):
        train(tmp_path / "out", more={"resume": True})


def test_a_finished_run_goes_on_for_more_steps(tmp_path: Path) -> None:
    train(tmp_path / "whole", optimizer={"steps": 9})
    train(tmp_path / "out", optimizer={"steps": 5})
    assert train(tmp_path / "out", optimizer={"steps": 9}, more={"resume": True}).steps == 9
    assert same(tmp_path / "out", tmp_path / "whole")
    with pytest.raises(CheckpointError, match=r"optimizer\.steps: .*was started with 9, and it is 5 now"):
        train(tmp_path / "out", optimizer={"steps": 5}, more={"resume": True})


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_that_ends_cannot_be_lengthened(tmp_path: Path, schedule: str) -> None:
    train(tmp_path / "out", optimizer={"schedule": schedule})
    with pytest.raises(
        CheckpointError, match=rf"optimizer\.steps: .*6 steps, .*{schedule} .*cannot become 9\. Fix: start"
    ):
        train(tmp_path / "out", optimizer={"schedule": schedule, "steps": 9}, more={"resume": True})


def test_a_changed_setting_is_named_with_both_values(tmp_path: Path) -> None:
    train(tmp_path / "out", loss={"reward": None})
    with pytest.raises(CheckpointError, match=r"rollout\.prompts_per_step: .* started with 8, and it is 4 now\. Fix: "):
        train(tmp_path / "out", rollout={"prompts_per_step": 4}, more={"resume": True})


def test_checkpoints_and_the_best_weights_are_models(tmp_path: Path) -> None:
    held_out = [{"prompt": "q r", "answer": "k"}, {"prompt": "s t", "answer": "k"}, {"prompt": "o p", "answer": "k"}]
    train(tmp_path / "out", more={"eval_prompts": held_out}, eval={"every": 2}, checkpoint={"every": 2, "keep": 3})
    checkpoints = tmp_path / "out" / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["000002", "000004", "000006", "best"]
    assert same(checkpoints / "000006", tmp_path / "out")
    assert not list(checkpoints.rglob("trained.safetensors"))  # the model's own file serves both
    for folder in checkpoints.iterdir():
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(loaded.model.embed_tokens.weight, weights(folder)["model.embed_tokens.weight"])
        assert len(AutoTokenizer.from_pretrained(folder)) == 31
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"prompt": "q r", "answer": "k"}\n')
        assert opd.evaluate(str(folder), str(rows), max_new_tokens=4)["length"] > 0
    student = {"student": str(checkpoints / "best"), "out": str(tmp_path / "next")}
    tree = merged(small_run(tmp_path / "next"), {**student, "optimizer": {"steps": 1}})
    assert opd.train(tree, teacher=make_model(1), prompts=PROMPTS).steps == 1


def test_frozen_parameters_are_in_the_model_and_a_resume_restores_the_others(tmp_path: Path) -> None:
    def student() -> LanguageModel:
        model = make_model(0)
        model.model.model.layers[0].requires_grad_(False)
        return model

    train(tmp_path / "whole", student=student())
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", student=student(), more={"callbacks": [Signals(3, signal.SIGINT)]})
    folder = tmp_path / "cut" / "checkpoints" / "000003"
    assert "model.layers.0.mlp.up_proj.weight" in weights(folder)
    assert "model.layers.0.mlp.up_proj.weight" not in load_file(folder / "trained.safetensors")
    train(tmp_path / "cut", student=student(), more={"resume": True})
    assert same(tmp_path / "cut", tmp_path / "whole")
