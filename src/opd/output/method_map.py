"""The map: each recipe's place on the axes."""

from __future__ import annotations

import json

from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from opd.axes.base import AXES as AXIS_VALUES
from opd.axes.base import GIVEN
from opd.axes.divergence import DIVERGENCE_WORDS
from opd.config.diffusion import DISTANCES, DiffusionConfig
from opd.config.read import RECIPES, read, recipe_names
from opd.config.run import RunConfig
from opd.output.format import format_value

MEASURED = RECIPES / "measured.json"
"""What ``make methods`` measured, by recipe and metric: before; median, least and most after."""

USAGE = "opd methods NAME shows a recipe's file; opd train NAME \\[key=value …] runs it"
VIEWS = {
    "plain": "the same prompt",
    "privileged": "the answer",
    "context": "a document",
    "feedback": "another attempt",
    "hint": "hints",
    "image": "the image",
}
"""The views in a few words; a recipe with another one shows a dash."""

NARROW = 160
"""Columns below which a table of all axes cannot be read."""

AXES = ("who rolls out", "teacher", "view", "signal", "divergence", "gradient", "where it counts", "mixed with")


def place(config: RunConfig | DiffusionConfig) -> tuple[str, ...]:
    """A recipe's value on each of ``AXES``, in the words of the values themselves."""
    if isinstance(config, DiffusionConfig):
        return _denoising(config)
    signal, rollout = config.loss.signal, config.rollout
    return (
        rollout.source.words() + (f", top-p {rollout.top_p:g}" if rollout.top_p < 1 else ""),
        _teachers(config) if signal.reads_teacher else "–",
        config.teacher.view.words(),
        signal.words(),
        signal.distance(config.loss.divergence.type) if signal.reads_teacher else "–",
        signal.gradient(),
        ", ".join(_where(config)) or "everywhere",
        " + ".join(_mixed(config)) or "–",
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
        DISTANCES[loss.divergence] if loss.signal.gradient() == "direct" else "–",
        loss.signal.gradient(),
        "chosen steps" if loss.step_weights else "everywhere",
        " + ".join(f"{name} ×{weight:g}" for name, weight in mixed.items() if weight) or "–",
    )


def _teachers(config: RunConfig) -> str:
    several = any(len(shares) > 1 for shares in config.teacher.shares.values())
    if several:
        return f"{len(config.teacher.models or {})} models, {config.experimental.combine}"
    return config.teacher.words()


def _where(config: RunConfig) -> list[str]:
    """The tokens that count, and how much."""
    weights, hardest = config.loss.token_weights, config.experimental.hardest_tokens
    said = {
        config.teacher.view.where: bool(config.teacher.view.where),
        f"the first {weights.first} tokens": weights.first is not None,
        f"rollouts cut at {config.rollout.max_new_tokens}": config.rollout.max_new_tokens
        < (config.eval.max_new_tokens or 0),
        f"the last {weights.last} tokens": weights.last is not None,
        f"after {weights.after} tokens": weights.after > 0,
        f"outside the environment's events × {weights.outside_events:g}": weights.outside_events != 1,
        "no special tokens": weights.skip_special,
        f"not at {' '.join(weights.skip_tokens)}": bool(weights.skip_tokens),
        f"early tokens more (γ {weights.importance:g})": weights.importance > 0,
        f"late tokens more (ramp {weights.ramp:g})": weights.ramp > 0,
        "near turns more": weights.fade is not None,
        f"the hardest by {hardest.by if hardest else ''}": hardest is not None,
        f"each {config.loss.aggregate} alike": config.loss.aggregate in ("sequence", "turn"),
        "each rollout over max_new_tokens": config.loss.aggregate == "constant",
        "vocabulary terms clipped": getattr(config.loss.signal, "clip", None) is not None,
    }
    return [text for text, holds in said.items() if holds]


def _mixed(config: RunConfig) -> list[str]:
    """The terms beside the signal."""
    loss = config.loss
    entropy = getattr(loss.signal, "teacher_entropy", None)
    mixed = {
        "forward KL where uncertain": entropy.weight if entropy else 0.0,
        "KL anchor": loss.anchor,
        "SFT": loss.sft,
        "reward": loss.reward.weight if loss.reward else 0.0,
    }
    return [f"{name} ×{weight:g}" for name, weight in mixed.items() if weight]


def show_map(console: Console) -> None:
    """All recipes as a table of 80 columns, or of all axes where there is room."""
    configs = {name: read(name) for name in recipe_names()}
    if console.width < NARROW:
        table = Table(
            "recipe", "teacher", "the teacher reads", "signal", box=None, padding=(0, 2, 0, 0), pad_edge=False
        )
        for name, config in configs.items():
            _, teacher, _, signal, *_ = place(config)
            teaches = teacher != "–"
            table.add_row(
                name, teacher, VIEWS.get(config.teacher.view.type, "–") if teaches else "–", signal.partition(",")[0]
            )
    else:
        table = Table("recipe", *AXES, "source")
        for name, config in configs.items():
            table.add_row(name, *place(config), config.method.source if config.method else "")
    console.print(table)
    console.print(USAGE)


def show_axes(console: Console) -> None:
    """Every axis of a language run with its values, each in a line."""
    for axis, values in AXIS_VALUES.items():
        console.print(f"[bold]{axis}[/]", highlight=False)
        for kind, value in values.items():
            if kind != GIVEN:
                _show_value(console, kind, (value.__doc__ or "").strip().split("\n\n")[0])
    console.print("[bold]loss.divergence[/]", highlight=False)
    for name, words in DIVERGENCE_WORDS.items():
        _show_value(console, name, words)
    console.print("A value of your own is package.module:Name; see docs/extending.md")


def _show_value(console: Console, name: str, words: str) -> None:
    line = f"  {name:<16} {' '.join(words.replace('``', '').split())}"
    console.print(escape(line), highlight=False, soft_wrap=True)


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
            cells = [format_value(metric, value) for value in (before, after, least, most)]
            table.add_row(metric, cells[0], cells[1], f"{cells[2]}–{cells[3]}")
        console.print(table)
    console.print(Syntax((RECIPES / f"{name}.yaml").read_text(), "yaml", background_color="default", word_wrap=True))
