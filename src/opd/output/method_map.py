"""The map: each recipe's place on the axes."""

from __future__ import annotations

import json

from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from opd.config import DiffusionConfig, LossConfig, RolloutConfig, RunConfig, TeacherConfig, ViewConfig
from opd.config.read import RECIPES, read, recipe_names
from opd.output.format import figure

MEASURED = RECIPES / "measured.json"
"""What ``make methods`` measured, by recipe and metric: before; median, least and most after."""

DISTANCES = {
    "transition": "squared distance of steps",
    "transition_kl": "KL of steps",
    "velocity": "squared distance of velocities",
    "x0": "squared distance of denoised means",
}
"""Divergences of denoising students, in words."""

USAGE = "opd methods NAME shows a recipe's file; opd train NAME \\[key=value …] runs it"
NARROW = 160
"""Columns below which a table of all axes cannot be read."""

AXES = ("who rolls out", "teacher", "view", "signal", "divergence", "gradient", "where it counts", "mixed with")


def place(config: RunConfig | DiffusionConfig) -> tuple[str, ...]:
    """A recipe's value on each of ``AXES``."""
    if isinstance(config, DiffusionConfig):
        return _denoising(config)
    teacher = config.teacher
    return (
        _who(config.rollout),
        _teachers(teacher) if config.loss.reads_teacher else "–",
        _sees(config.teacher.view),
        _signal(config.loss),
        _divergence(config.loss),
        _gradient(config.loss),
        ", ".join(_where(config)) or "everywhere",
        " + ".join(_mixed(config.loss)) or "–",
    )


def _denoising(config: DiffusionConfig) -> tuple[str, ...]:
    """The same of a denoising student."""
    loss, rollout, teacher = config.loss, config.rollout, config.teacher
    sampler = f"{rollout.steps} denoising steps, {'SDE' if rollout.noise or rollout.renoise else 'ODE'}"
    mixed = {
        "anchor": loss.anchor,
        "reward": loss.reward.weight if loss.reward else 0,
        "reward gradient": loss.reward_gradient.weight if loss.reward_gradient else 0,
    }
    return (
        rollout.source.words() if rollout.source.type == "images" else f"{rollout.source.words()}, {sampler}",
        teacher.words() if loss.signal.reads_teacher else "–",
        teacher.view.words(),
        loss.signal.words(),
        DISTANCES[loss.divergence] if loss.signal.gradient == "direct" else "–",
        loss.signal.gradient,
        "chosen steps" if loss.step_weights else "everywhere",
        " + ".join(f"{name} ×{weight:g}" for name, weight in mixed.items() if weight) or "–",
    )


def _teachers(teacher: TeacherConfig) -> str:
    if teacher.models:
        several = any(len(shares) > 1 for shares in teacher.shares.values())
        return f"{len(teacher.models)} models, {teacher.combine if several else 'by domain'}"
    weights = {"model": "another model", "frozen": "self, frozen", "ema": "self, EMA", "live": "self, live"}
    return weights[teacher.weights]


def _who(rollout: RolloutConfig) -> str:
    nucleus = f", top-p {rollout.top_p:g}" if rollout.top_p < 1 else ""
    return _writer(rollout) + nucleus


def _writer(rollout: RolloutConfig) -> str:
    if rollout.offline:
        return f"{rollout.policy}, once ({rollout.offline} prompts)"
    if rollout.prefix:
        return f"{rollout.policy} after up to {rollout.prefix} of the teacher's tokens"
    if rollout.prefix_turns:
        return f"{rollout.policy} after up to {rollout.prefix_turns} of the teacher's turns"
    if rollout.off_policy_steps:
        return f"{rollout.other} for {rollout.off_policy_steps} steps, then {rollout.policy}"
    return f"{rollout.policy}, {rollout.off_policy:.0%} {rollout.other}" if rollout.off_policy else rollout.policy


def _sees(view: ViewConfig) -> str:
    if view.hint:
        return f"hint ({view.hint.author.kind}, at the {view.hint.place})"
    return "context (experience)" if view.context and view.context.experience else view.kind


def _signal(loss: LossConfig) -> str:
    if loss.hidden.bridge:
        return f"hidden states, bridge of {loss.hidden.bridge.rank}"
    if loss.top_k:
        return f"top {loss.top_k.k} of {loss.top_k.whose}, {loss.top_k.rest}"
    return {
        "full": "full vocabulary",
        "sampled": "sampled token",
        "hidden": "hidden states",
        "cross": "another tokenizer",
        "reward": "outcome",
    }.get(loss.signal, loss.signal)


def _divergence(loss: LossConfig) -> str:
    if loss.signal == "hidden":
        return "squared distance"
    return loss.divergence if loss.reads_teacher else "–"


def _where(config: RunConfig) -> list[str]:
    positions = config.loss.positions
    said = {
        "the faulty turns": config.teacher.view.hint is not None,
        f"the first {positions.first} tokens": positions.first is not None,
        f"rollouts cut at {config.rollout.max_new_tokens}": config.rollout.max_new_tokens
        < (config.eval.max_new_tokens or 0),
        f"the last {positions.last} tokens": positions.last is not None,
        f"after {positions.after} tokens": positions.after > 0,
        f"outside the environment's events × {positions.outside_events:g}": positions.outside_events != 1,
        "no special tokens": positions.skip_special,
        f"not at {' '.join(positions.skip_tokens)}": bool(positions.skip_tokens),
        f"early tokens more (γ {positions.importance:g})": positions.importance > 0,
        f"late tokens more (ramp {positions.ramp:g})": positions.ramp > 0,
        "near turns more": positions.fade is not None,
        f"the hardest by {positions.hardest.by if positions.hardest else ''}": positions.hardest is not None,
        f"each {positions.mean} alike": positions.mean in ("sequence", "turn"),
        "each rollout over the longest": positions.mean == "constant",
        f"terms cut at {config.loss.clip}": config.loss.clip is not None,
    }
    return [text for text, holds in said.items() if holds]


def _gradient(loss: LossConfig) -> str:
    if loss.signal not in ("sampled", "reward"):
        return "direct"
    kind = loss.sampled.direct
    if kind:
        return f"direct ({kind})"
    said = {"clip": loss.sampled.clip and "–".join(map(str, loss.sampled.clip)), "scale": loss.sampled.scale}
    extra = [f"{name} {value}" for name, value in said.items() if value not in (None, 1.0)]
    return ", ".join(["policy gradient", *extra, *(["baseline"] if loss.sampled.baseline else [])])


def _mixed(loss: LossConfig) -> list[str]:
    unsure = loss.unsure.weight if loss.unsure else 0.0
    mixed = {
        "forward KL where unsure": unsure,
        "KL anchor": loss.anchor,
        "gold answers": loss.gold,
        "outcome reward": loss.outcome,
    }
    return [f"{name} ×{weight:g}" for name, weight in mixed.items() if weight]


def show_map(console: Console) -> None:
    """All recipes as a table."""
    if console.width < NARROW:
        for name in recipe_names():
            config = read(name)
            console.print(f"[bold]{name}[/]  {config.method.title if config.method else ''}")
            places = zip(AXES, place(config), strict=True)
            console.print("  " + escape(" · ".join(f"{axis}: {value}" for axis, value in places if value != "–")))
        console.print(USAGE)
        return
    table = Table("recipe", *AXES, "source")
    for name in recipe_names():
        config = read(name)
        table.add_row(name, *place(config), config.method.source if config.method else "")
    console.print(table)
    console.print(USAGE)


def show_recipe(console: Console, name: str) -> None:
    """One recipe: what it is, what it did here with all diagnostics, and its file."""
    config = read(name)
    if config.method:
        console.print(f"[bold]{name}: {config.method.title}[/]\n{config.method.summary}")
        console.print(f"source    {config.method.source}\nreported  {config.method.reported}")
        console.print(f"used by   {config.method.used_by or 'none found'}\n")
    measured = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    if name in measured:
        table = Table("on the nano suite", "before", "after", "over seeds")
        for metric, (before, after, least, most) in measured[name].items():
            cells = [figure(metric, value) for value in (before, after, least, most)]
            table.add_row(metric, cells[0], cells[1], f"{cells[2]}–{cells[3]}")
        console.print(table)
    console.print(Syntax((RECIPES / f"{name}.yaml").read_text(), "yaml", background_color="default", word_wrap=True))
