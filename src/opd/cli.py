"""The ``opd`` command: parses, calls, prints."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from opd import __version__
from opd.config.secrets import redact_sentence
from opd.errors import ConfigError, OpdError, RankError
from opd.output.faults import as_sentences
from opd.output.visible import sentence, visible


class _Commands(TyperGroup):
    """The commands. Typer alone prints nothing when a command is interrupted."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            said = escape(sentence(str(error))) or "interrupted"
            if _is_first():
                Console(stderr=True, emoji=False).print(f"\n{said}", highlight=False, soft_wrap=True)
            raise typer.Exit(128 + getattr(error, "number", signal.SIGINT)) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(emoji=False)


def _is_first() -> bool:
    """Whether this is the only process, or of several the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"opd {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train language and diffusion models by on-policy distillation: the student answers, a teacher scores each token.

    Begin with opd train hint, or with opd methods for what else there is. opd COMMAND -h explains a command.
    """


Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of the run file.")]


@app.command()
def train(
    source: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe's name or a run file.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines of metrics.jsonl as they come.")] = False,
) -> None:
    """Train a student; the folder out gets the model, its metrics and a report of every token's target.

    For instance: opd train hint optimizer.steps=50 out=runs/mine.
    Without a terminal it prints lines of key=value, at most one in two seconds.
    """
    if quiet and as_json:
        raise OpdError("--quiet and --json contradict each other. Fix: give one of them")
    from opd.config.read import read

    read(source, overrides or [])  # a mistake in the run file is reported before torch is imported
    from opd.api import train as run
    from opd.output.log_lines import JsonLines
    from opd.output.terminal import run_display, show_result

    quiet = quiet or not _is_first()
    callbacks = [] if quiet else [JsonLines(console) if as_json else run_display(console)]
    result = run(source, overrides or [], resume=resume, callbacks=callbacks)
    if not quiet and not as_json:
        show_result(console, result)


@app.command()
def pipeline(
    source: Annotated[str, typer.Argument(metavar="FILE", help="A pipeline's file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as stages.first.optimizer.steps=5.")
    ] = None,
) -> None:
    """Run a graph of stages, or continue it; out gets every stage's model and one report of all.

    Exit status 2: a stage failed; 1: a guard stopped one.
    """
    from opd.pipelines.run import pipeline as run
    from opd.pipelines.table import display, show

    result = run(source, overrides or [], displays=[display(console)])
    show(console, result)
    for problem in result.problems:
        _complain(problem)
    raise typer.Exit(result.exit_status)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Path, bundled name or hub id.")],
    prompts: Annotated[str, typer.Argument(help="A task, a file, or a dataset's folder or id.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Settings of the prompts, such as limit=100 or columns.prompt=question."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the task or dataset; by default test or validation.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Also sample n answers per prompt: avg@n.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens after a prompt.")] = 256,
    limit: Annotated[int | None, typer.Option(help="Measure the first n prompts.")] = None,
    temperature: Annotated[float, typer.Option(help="Of the answers; 0 takes the most likely token.")] = 0.0,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU if there is one.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as one JSON object.")] = False,
) -> None:
    """Measure a model, a run or a checkpoint on prompts: right answers, invalid calls, length, cut-off answers."""
    from opd.api import evaluate as measure
    from opd.output.run_folder import json_line
    from opd.output.terminal import show_metrics

    metrics = measure(
        model,
        prompts,
        split=split,
        settings=settings or (),
        samples=samples,
        max_new_tokens=max_new_tokens,
        limit=limit,
        temperature=temperature,
        dtype=dtype,  # type: ignore[arg-type]
        device=device,
        note=lambda text: Console(stderr=as_json, emoji=False).print(escape(text), highlight=False),
    )
    if as_json:
        sys.stdout.write(json_line(metrics))
    else:
        show_metrics(console, model, metrics)


@app.command()
def view(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of runs, several side by side, or one of a pipeline."),
    ],
    live: Annotated[bool, typer.Option("--live", help="Follow runs or a pipeline through a local server.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="File of the page; by default report.html in the run's folder, or here for several."),
    ] = None,
    port: Annotated[int, typer.Option(help="Port for --live; 0 picks a free port.", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Write a run's page and open it: the teacher's target for every token, curves, events; or a pipeline's.

    Several runs are compared. With --live the page follows runs or a pipeline, and waits for one that has not begun.
    """
    from opd.report.view import follow, write

    if live:
        follow(console, runs, port=port, browser=browser)
    else:
        write(console, runs, out, browser=browser)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show one recipe's file, with its reasons.")] = None,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Print a run file to begin from, with NAME's settings for your own model.")
    ] = False,
    axes: Annotated[bool, typer.Option("--axes", help="List the values of every axis instead.")] = False,
) -> None:
    """List the recipes with their values on the axes, or show one; opd methods opd --yaml > my.yaml begins your own."""
    from opd.output.method_map import show_axes, show_map, show_recipe
    from opd.output.starter import starter

    if as_yaml:
        if not name:
            raise ConfigError("methods: --yaml needs a recipe's name. Fix: write it, as in opd methods opd --yaml")
        sys.stdout.write(starter(name))
    elif axes:
        show_axes(console)
    elif name:
        show_recipe(console, name)
    else:
        show_map(console)


@app.command()
def serve(
    models: Annotated[
        list[str], typer.Argument(metavar="[NAME=]MODEL...", help="Path, bundled name or hub id, or several by name.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen at; others than 127.0.0.1 need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 8000,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a forward pass, padding included.")] = 16_384,
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable with the key that requests carry.")
    ] = "OPD_TEACHER_API_KEY",
) -> None:
    """Serve teachers' hidden states, for instance: opd serve nano/math-teacher --port 8000

    A run reads them with teacher.model=nano/math-teacher teacher.served=http://127.0.0.1:8000
    """
    from opd.servers.command import serve as run

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)
        console.file.flush()

    run(
        models,
        host=host,
        port=port,
        dtype=dtype,
        device=device,
        max_tokens=max_tokens,
        api_key_env=api_key_env,
        say=say,
    )


@app.command()
def doctor(
    source: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe's name or a run file.")],
    overrides: Overrides = None,
) -> None:
    """Check a run before it costs anything: tokenizers, templates, lengths, memory, is the teacher better?

    It prints one line per check, with what to change where something is wrong.
    """
    from opd.config.read import read

    read(source, overrides or [])
    from opd.api import examine

    for line in examine(source, overrides or []):
        console.print(escape(visible(line)), highlight=False, soft_wrap=not console.is_terminal)


def main() -> None:
    """Run a command; a user's error is one sentence and exit status 2."""
    try:
        with as_sentences():
            app()
    except RankError:
        sys.exit(2)
    except OpdError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # before the ranks have met, each of them finds the same
            _complain(str(error))
        sys.exit(2)
    except Exception:  # a fault of opd or of a library; what libraries say may hold a key
        sys.stderr.write(redact_sentence(traceback.format_exc()))
        sys.exit(1)


def _complain(problem: str) -> None:
    console = Console(stderr=True, emoji=False)
    console.print(f"[red]error:[/] {escape(sentence(problem))}", highlight=False, soft_wrap=True)
