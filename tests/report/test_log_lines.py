"""The output of a run without a terminal."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from opd.output import log_lines
from opd.output.callbacks import RunStart
from opd.output.format import format_value
from opd.output.log_lines import JsonLines, LogLines
from opd.output.terminal import LiveDisplay
from support.command_line import command

PAIR = r'[^ ="]+=(?:"(?:[^"\\]|\\.)*"|[^ "]+)'
LINE = re.compile(rf"(?:(?:eval|event|note|result|stopped|done) )?{PAIR}(?: {PAIR})*")


def parsed(line: str) -> dict[str, str]:
    """The pairs of one line; the line holds nothing besides them but its kind."""
    assert LINE.fullmatch(line), line
    return {pair.split("=", 1)[0]: pair.split("=", 1)[1] for pair in re.findall(PAIR, line)}


def narrow() -> Console:
    """A console that wraps whatever it may."""
    return Console(file=io.StringIO(), width=40)


def test_a_log_of_200_steps_is_one_line_a_step_whatever_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_lines, "SECONDS", 0.0)
    console = narrow()
    log = LogLines(console)
    log.start(RunStart(out=Path("out"), step=0, steps=200, evaluates=True))
    timed = {"tokens": 640.0, "rollout_s": 0.2, "teacher_s": 0.05, "update_s": 0.15}
    for step in range(1, 201):
        log.step(step, {"loss": 0.5 / step, "accuracy": step / 200, "grad_norm": 2e-6, **timed})
        if step % 50 == 0:
            log.evaluation(step, {"accuracy": 0.9, "teacher/reverse_kl": 0.1})
    log.event(200, "rollback", 'the "teacher" drifted:\nback to step 150, [bold]once[/] more ' + "and on " * 30)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 200 + 4 + 1
    steps = [parsed(line) for line in lines if line.startswith("step=")]
    assert [row["step"] for row in steps] == [f"{n}/200" for n in range(1, 201)]
    assert steps[9] == steps[9] | {"loss": "0.050", "accuracy": "5.0%", "grad_norm": "2e-6", "tok/s": "1600"}
    assert re.fullmatch(r"\d+s", steps[9]["left"])
    event = parsed(lines[-1])
    assert json.loads(event["text"]).startswith('the "teacher" drifted: back to step 150, [bold]once[/]')


def test_a_run_of_images_has_their_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokens are denoising steps, of which one image needs many."""
    monkeypatch.setattr(log_lines, "SECONDS", 0.0)
    metrics = {"loss": 0.5, "tokens": 640.0, "rollout_s": 1.0, "teacher_s": 0.5, "update_s": 0.5}
    start = RunStart(out=Path("out"), step=0, steps=2, evaluates=True, images=32)
    console = narrow()
    log = LogLines(console)
    log.start(start)
    log.step(1, metrics)
    assert isinstance(console.file, io.StringIO)
    row = parsed(console.file.getvalue().strip())
    assert row["images/s"] == "16.0"
    assert "tok/s" not in row
    terminal = Console(file=io.StringIO(), width=200, force_terminal=True)
    bar = LiveDisplay(terminal)
    bar.start(start)
    bar.step(1, metrics)
    bar.stop()
    assert isinstance(terminal.file, io.StringIO)
    assert "16.0 images/s" in terminal.file.getvalue()


def test_fast_steps_share_a_line_and_the_last_step_has_one() -> None:
    console = narrow()
    log = LogLines(console)
    log.start(RunStart(out=Path("out"), step=5, steps=60, evaluates=False))
    for step in range(6, 61):
        log.step(step, {"loss": 1.0})
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [parsed(line).get("step") for line in lines] == [None, None, "6/60", "60/60"]
    assert parsed(lines[0])["text"] == '"nothing is evaluated: neither eval.prompts nor eval.text is set"'


def test_numbers_too_small_for_three_decimals_are_not_zero() -> None:
    assert format_value("lr", 1e-6) == "1e-6"
    assert format_value("loss", -0.0004) == "-0.0004"
    assert format_value("loss", 0.0) == "0.000"
    assert format_value("accuracy", 0.00004) == "0.0%"


def test_json_lines_hold_no_number_that_json_has_not() -> None:
    console = narrow()
    JsonLines(console).step(3, {"loss": float("nan"), "grad_norm": float("inf"), "tokens": 7.0})
    assert isinstance(console.file, io.StringIO)
    row = json.loads(console.file.getvalue())
    assert row == {"step": 3, "train": {"loss": None, "grad_norm": None, "tokens": 7.0}}


@pytest.mark.slow
def test_the_command_prints_lines_json_or_nothing(tmp_path: Path) -> None:
    small = ("eval.prompts.limit=8", "eval.diagnostics=0", "rollout.prompts_per_step=4", "optimizer.steps=2", "log=[]")
    for option, kinds in ((), {"step", "eval", "done"}), (("--json",), {"{"}), (("--quiet",), set()):
        out = tmp_path / f"run{''.join(option)}"
        done = command("train", "hint", *small, f"out={out}", *option, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert {kind for kind in ("step", "eval", "done", "{") if any(line.startswith(kind) for line in lines)} == kinds
        for line in lines:
            if option:
                json.loads(line)
            else:
                parsed(line)
    both = command("train", "hint", "--json", "--quiet", cwd=tmp_path)
    assert both.returncode == 2
    assert "contradict" in both.stderr
