"""The command line as a user meets it: exit statuses, sentences, and what a process of its own adds."""

import json
from pathlib import Path

import pytest

import opd
from opd.api import examine
from opd.config.read import recipe_names
from opd.models.bundled import BUNDLED
from support.command_line import ENVIRONMENT, Done, command, process
from support.slow import slow_but


def test_methods_lists_every_recipe_with_its_place_and_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = command("methods", cwd=tmp_path)
    assert done.returncode == 0
    for name in recipe_names():
        assert name in done.stdout
    monkeypatch.setitem(ENVIRONMENT, "COLUMNS", "80")
    lines = command("methods", cwd=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(recipe_names())  # one line each
    assert max(map(len, lines)) <= 80
    shown = command("methods", "hint", cwd=tmp_path)
    assert "arXiv 2605.17873" in shown.stdout
    assert "student: nano/tools-base" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "hnt"], "did you mean 'hint'"),
        (["train", "hint", "optimizer.stps=3"], "did you mean 'optimizer.steps'"),
        (["train", "hint", "student=/nowhere"], "student: cannot load '/nowhere'"),
        (["train", "hint", "student=nano/nothing"], "no bundled model 'nano/nothing'"),
        (["train", "hint", "prompts=none.jsonl"], "prompts: cannot read 'none.jsonl'"),
        (["train", "hint", "prompts=broken.jsonl"], "line 2 of 'broken.jsonl' is not JSON"),
        (["train", "hint", "prompts.limit=3"], "fewer than one batch"),
        (["train", "hint", "loss.divergence=kl"], "no divergence 'kl'"),
        (["train", "hint", "prompts.task=nothing"], "nothing"),
        (["train", "hint", "prompts.task=tols"], "there is no task 'tols'; did you mean 'tools'?"),
        (["train", "opd", "teacher.model=/nowhere"], "teacher.model: cannot load '/nowhere'"),
        (
            ["train", "hint", "teacher.view.author={type: model, model: /nowhere}"],
            "teacher.view.author.model: cannot load",
        ),
        (["eval", "/nowhere", "math"], "cannot load '/nowhere'"),
        (["eval", "nano/tools-base", "none.jsonl"], "cannot read 'none.jsonl'"),
        (["doctor", "hint", "rollout.max_new_tokens=100000"], "exceeds the model's"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    assert_one_sentence(command(*arguments, cwd=tmp_path), words)
    assert not (tmp_path / "runs").exists()


def assert_one_sentence(done: Done, words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["train", "hint", "teacher.view.author={type: model, model: /nowhere}"],
            "teacher.view.author.model: cannot load",
        ),
        (["doctor", "opd", "rollout.max_new_tokens=100000"], "exceeds the model's"),
    ],
)
def test_libraries_print_nothing_beside_the_sentence(tmp_path: Path, arguments: list[str], words: str) -> None:
    assert_one_sentence(process(*arguments, cwd=tmp_path), words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_train_eval_and_resume(tmp_path: Path) -> None:
    overrides = ["optimizer.steps=2", "rollout.prompts_per_step=8", "eval.prompts.limit=8", "out=run"]
    done = process("train", "hint", *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "before" in done.stdout
    assert (tmp_path / "run" / "tensorboard").is_dir()
    again = command("train", "hint", *overrides, cwd=tmp_path)
    assert again.returncode == 2
    assert "go on with --resume" in again.stderr
    assert command("train", "hint", *overrides, "--resume", cwd=tmp_path).returncode == 0
    measured = process("eval", "run", "tools", cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    assert "invalid_call_rate" in measured.stdout


def test_the_doctor_at_the_command_line(tmp_path: Path) -> None:
    done = command("doctor", "hint", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ready to train" in done.stdout


QUICK = ("gold", "grpo", "hint", "opd")
"""Recipes with an own kind of teacher or signal each; the others are slow together."""


@pytest.mark.parametrize("recipe", slow_but(recipe_names(), *QUICK))
def test_the_doctor_finds_every_recipe_ready(tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    *said, last = examine(recipe, {})
    assert last == "ready to train"
    assert any("aligned" in line for line in said)
    assert not list(tmp_path.iterdir())


def test_bundled_models_are_small() -> None:
    assert sum(f.stat().st_size for f in BUNDLED.rglob("*") if f.is_file()) < 16_000_000


def test_the_version_and_what_opd_does(tmp_path: Path) -> None:
    assert command("--version", cwd=tmp_path).stdout == f"opd {opd.__version__}\n"
    for flag in ("-h", "--help"):
        helped = command(flag, cwd=tmp_path)
        assert "Train language and diffusion models by on-policy distillation" in helped.stdout
        assert "No logic" not in helped.stdout
    assert "--temperature" in command("eval", "-h", cwd=tmp_path).stdout


def test_an_evaluation_as_json_with_its_options(tmp_path: Path) -> None:
    options = ["--limit", "4", "--temperature", "0.6", "--dtype", "bfloat16", "--device", "cpu", "--json"]
    done = command("eval", "nano/math-base", "math", *options, "--max-new-tokens", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["length"] > 0
    for wrong, words in (
        (["--limit", "0"], "limit: at least 1 is needed (got 0)"),
        (["--temperature", "-1"], "temperature: at least 0 is needed (got -1.0)"),
        (["--dtype", "int8"], "dtype: there is no 'int8'. Fix: choose float32, bfloat16, float16"),
    ):
        assert_one_sentence(command("eval", "nano/math-base", "math", *wrong, cwd=tmp_path), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["eval", "nano/math-bas", "math"],
            "no bundled model 'nano/math-bas'; did you mean 'nano/math-base'? Fix",
        ),
        (["eval", "math-base", "math"], "did you mean 'nano/math-base'? Fix"),
        (["eval", "nano/math-base", "maths"], "did you mean 'math'? Fix"),
        (
            ["train", "lsm", "loss.signal.k=1000", "out=x"],
            "loss.signal.k=1000 is above the 291 tokens of the",
        ),
    ],
)
def test_near_names_and_impossible_numbers(
    tmp_path: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_one_sentence(command(*arguments, cwd=tmp_path), words)


def test_an_error_is_one_line_without_emoji_or_hidden_characters(tmp_path: Path) -> None:
    done = command("train", "hint", "student=a:b:c\u202e\x1b[2J" + "x" * 60_000, "out=o", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "a:b:c\\u202e\\x1b[2J" in done.stderr
    assert len(done.stderr) < 1200
