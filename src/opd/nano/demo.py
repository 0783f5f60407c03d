"""``make demo``: train a tool-calling model with hints above its mistakes, and show each step."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

import opd
from opd.axes.base import Objects
from opd.axes.views.hint import HintView
from opd.config.read import read
from opd.config.run import RunConfig
from opd.evaluation.metrics import summarise
from opd.language.context import LanguageContext
from opd.language.load import load_run
from opd.models.forward import read as read_hidden
from opd.models.forward import readings_of
from opd.models.language import LanguageModel
from opd.output.terminal import run_display, show_result
from opd.types import Event, Hint, Rollout, Sampling, Segment

AUTHORS = {"rules": "rules", "model": {"type": "model", "model": "nano/critic"}}


def main(
    author: Annotated[str, typer.Option(help="Author of the hints: rules, or model (the nano critic).")] = "rules",
    out: Annotated[str, typer.Option(help="Folder of the run; an existing folder is deleted.")] = "runs/demo",
    steps: Annotated[int, typer.Option(help="Number of optimizer steps.")] = 100,
    image: Annotated[str | None, typer.Option(help="Also save the output as an SVG image.")] = None,
) -> None:
    """Show the base model, a mistake with its hint, the training, and the result."""
    if author not in AUTHORS:
        raise typer.BadParameter(f"--author: unknown value '{author}'. Fix: use rules or model")
    console = Console(record=True, width=110, file=io.StringIO()) if image else Console()
    shutil.rmtree(out, ignore_errors=True)
    overrides = {"teacher.view.author": AUTHORS[author], "optimizer.steps": steps, "out": out}
    config = read("hint", overrides)
    assert isinstance(config, RunConfig)
    run = load_run(config, Objects())
    console.rule("[bold]1. the base model calls tools that do not exist")
    rollouts = run.sampler(Sampling(temperature=0), held_out=True).rollout(run.held_out, seed=0)
    metrics = summarise(rollouts)
    console.print(
        f"on {len(rollouts)} held-out prompts: [red]{metrics['invalid_call_rate']:.0%}[/] of the tool calls are "
        f"invalid, [red]{metrics['accuracy']:.0%}[/] of the answers are correct\n"
    )
    console.rule("[bold]2. one rollout with its hint")
    _show_mistake(console, run, rollouts)
    console.rule("[bold]3. on-policy distillation: the same model with the hint in its context is the teacher")
    result = opd.train("hint", overrides, callbacks=[run_display(console)])
    console.rule("[bold]4. the result")
    show_result(console, result)
    if image:
        console.save_svg(image, title="make demo")


def _show_mistake(console: Console, run: LanguageContext, rollouts: Sequence[Rollout]) -> None:
    """Print a rollout with its wrong call, the hint, and the probabilities with and without the hint."""
    view = run.view()
    assert isinstance(view, HintView)
    wrong = [r for r in rollouts if any(e.kind == "unknown_tool" for e in r.events)][:8]
    segments = view.segments(wrong)
    segment, hint = next((s, h) for s in segments for h in view.last_hints[s.rollout] if h.span == s.span)
    rollout = wrong[segment.rollout]
    event = next(e for e in rollout.events if e.span == segment.span)
    console.print(_transcript(run, rollout, event, hint))
    position = _position_of(run, rollout, event)
    history = rollout.prompt_ids + rollout.completion_ids[: segment.span.start]
    without = _probability(run.student, rollout, Segment(0, history, segment.span), position)
    with_hint = _probability(run.student, rollout, Segment(0, segment.context_ids, segment.span), position)
    wrong_id = rollout.completion_ids[position]
    best_id = int(with_hint.argmax())
    name, right = escape(run.chat.decode([wrong_id])), escape(run.chat.decode([best_id]))
    console.print(
        f"probability of the wrong tool  '{name}':  {without[wrong_id]:.3f} → {with_hint[wrong_id]:.3f} with the hint"
    )
    console.print(
        f"probability of a listed tool  '{right}':  {without[best_id]:.3f} → {with_hint[best_id]:.3f} with the hint\n"
    )


def _transcript(run: LanguageContext, rollout: Rollout, event: Event, hint: Hint) -> Panel:
    lines = [f"[dim]{m['role']:>9}[/]  {escape(m['content'])}" for m in rollout.prompt.messages or ()]
    turns = iter(rollout.turns)
    for message in rollout.transcript:
        text, role = escape(message["content"]), message["role"]
        if role == "assistant" and next(turns) == event.span:
            lines.append(f"[yellow]     hint  {escape(hint.text)}[/]  [dim]← teacher's input only[/]")
            text = f"[red]{text}[/]  [dim]← {event.kind.replace('_', ' ')}[/]"
        lines.append(f"[dim]{role:>9}[/]  {text}")
    return Panel("\n".join(lines), expand=False)


def _position_of(run: LanguageContext, rollout: Rollout, event: Event) -> int:
    """Completion position of the wrong tool's name."""
    return next(
        p for p in range(*event.span) if run.chat.decode([rollout.completion_ids[p]]).strip() == event.detail["tool"]
    )


@torch.no_grad()
def _probability(model: LanguageModel, rollout: Rollout, segment: Segment, position: int) -> torch.Tensor:
    """The model's distribution [V] at a completion position, given a segment's context."""
    where, states = read_hidden(model, readings_of([rollout], [segment]))
    row = where.position_T.tolist().index(position)
    return (states.hidden_TD[row] @ model.head_VD.T).float().softmax(-1)


if __name__ == "__main__":
    typer.run(main)
