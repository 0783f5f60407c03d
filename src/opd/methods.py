"""The map: each recipe's place on the axes."""

from __future__ import annotations

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from opd.config import LossConfig, RolloutConfig, RunConfig
from opd.run_file import RECIPES, read, recipe_names

AXES = ("who rolls out", "teacher", "view", "signal", "divergence", "gradient", "mixed with")


def place(config: RunConfig) -> tuple[str, ...]:
    """A recipe's value on each of ``AXES``."""
    teacher = config.teacher
    view = teacher.view
    hint = f"hint ({view.hint.author.kind}, at the {view.hint.place})" if view.hint else view.kind
    weights = {"model": "another model", "frozen": "self, frozen", "ema": "self, EMA", "live": "self, live"}
    return (
        _who(config.rollout),
        weights[teacher.weights],
        hint,
        _signal(config.loss),
        config.loss.divergence if config.loss.reads_teacher else "–",
        _gradient(config.loss),
        " + ".join(_mixed(config.loss)) or "–",
    )


def _who(rollout: RolloutConfig) -> str:
    if not rollout.off_policy:
        return rollout.policy
    return f"{rollout.policy}, {rollout.off_policy:.0%} {rollout.other}"


def _signal(loss: LossConfig) -> str:
    if loss.top_k:
        return f"top {loss.top_k.k} of {loss.top_k.whose}, {loss.top_k.rest}"
    return {
        "full": "full vocabulary",
        "sampled": "sampled token",
        "cross": "another tokenizer",
        "reward": "outcome",
    }.get(loss.signal, loss.signal)


def _gradient(loss: LossConfig) -> str:
    if loss.signal not in ("sampled", "reward"):
        return "direct"
    kind = loss.sampled.estimator
    return "policy gradient" if kind == "policy_gradient" else f"direct ({kind})"


def _mixed(loss: LossConfig) -> list[str]:
    mixed = {"KL anchor": loss.anchor, "outcome reward": loss.outcome}
    return [f"{name} ×{weight:g}" for name, weight in mixed.items() if weight]


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
