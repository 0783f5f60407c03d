"""The map: each recipe's place on the axes."""

from __future__ import annotations

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from opd.config import RECIPES, RunConfig, read, recipe_names

AXES = ("who rolls out", "teacher", "view", "signal", "divergence", "mixed with")


def place(config: RunConfig) -> tuple[str, ...]:
    """A recipe's value on each of ``AXES``."""
    teacher = config.teacher
    view = teacher.view
    hint = f"hint ({view.hint.author.kind}, at the {view.hint.place})" if view.hint else view.kind
    weights = {"model": "another model", "frozen": "self, frozen", "ema": "self, EMA", "live": "self, live"}
    return (
        config.rollout.policy,
        weights[teacher.weights],
        hint,
        config.loss.signal,
        config.loss.divergence,
        f"KL anchor ×{config.loss.anchor:g}" if config.loss.anchor else "–",
    )


def show_map(console: Console) -> None:
    """All recipes as a table."""
    table = Table("recipe", *AXES, "source")
    for name in recipe_names():
        config = read(name)
        table.add_row(name, *place(config), config.method.source if config.method else "")
    console.print(table)
    console.print("opd methods NAME shows a recipe's file; opd train NAME [key=value …] runs it")


def show_recipe(console: Console, name: str) -> None:
    """One recipe: what it is, and its file."""
    config = read(name)
    if config.method:
        console.print(f"[bold]{name}: {config.method.title}[/]\n{config.method.summary}")
        console.print(f"source    {config.method.source}\nreported  {config.method.reported}\n")
    console.print(Syntax((RECIPES / f"{name}.yaml").read_text(), "yaml", background_color="default"))
