"""The map: source, values on the axes, and measured and reported results of every recipe."""

from __future__ import annotations

import json
from functools import cache

from opd.config.diffusion import DiffusionConfig
from opd.config.read import RECIPES, read, recipe_names
from opd.config.run import MethodConfig, RunConfig
from opd.output.format import format_value
from opd.output.method_map import AXES, MEASURED, place
from opd_docs.tables import table

HEADLINES = {
    "accuracy": "greedy accuracy",
    "avg@2": "accuracy of sampled answers (avg@2)",
    "invalid_call_rate": "invalid tool calls",
    "gap_recovery": "share of the gap to the teacher closed",
    "frechet": "Fréchet distance to real pictures, in a judge's features",
    "teacher/overlap@16": "16 likeliest tokens shared with the teacher",
    "teacher/reverse_kl": "KL(student‖teacher), nats a token",
}
"""Metrics in the map with their labels; all others are in ``opd methods NAME``."""

TOGETHER = "\N{NO-BREAK SPACE}"
"""Keeps a value on one line."""


def overview() -> str:
    """One row per recipe."""
    rows = [
        [f"[`{name}`](#{name})", method.title, method.source, method.used_by or "–", here(name), method.reported or "–"]
        for name in recipe_names()
        for method in [_read(name)[1]]
    ]
    return table(["recipe", "what", "source", "reported users", "measured here", "reported by the source"], rows)


def places() -> str:
    """Every recipe's value on every axis."""
    return table(["recipe", *AXES], [[f"[`{n}`](#{n})", *place(_read(n)[0])] for n in recipe_names()])


def recipes() -> str:
    """One section per recipe."""
    return "\n\n".join(_section(name) for name in recipe_names())


def here(name: str) -> str:
    """Measured results of a recipe: before, and the median over seeds after."""
    rows = _measured().get(name)
    if not rows:
        return "not measured yet"
    config = _read(name)[0]
    said = {"accuracy": "greedy" if config.family == "language" else "accuracy", "avg@2": "sampled"}
    figures = [
        f"{word} {format_value(metric, rows[metric][0])} → {format_value(metric, rows[metric][1])}".replace(
            " ", TOGETHER
        )
        for metric, word in said.items()
        if metric in rows
    ]
    return f"{_task(config)}: {', '.join(figures)}"


def _task(config: RunConfig | DiffusionConfig) -> str:
    """The task of the recipe's prompts."""
    first = config.prompts.mix[0] if config.prompts.mix else config.prompts
    return first.task or ""


def _section(name: str) -> str:
    config, method = _read(name)
    facts = [
        f"**Source:** {method.source}.",
        f"**Reported:** {method.reported or '–'}.",
        f"**Reported users:** {method.used_by or 'none found'}.",
    ]
    file = "\n".join(f"    {line}" if line else "" for line in (RECIPES / f"{name}.yaml").read_text().splitlines())
    parts = [
        f"### {name}",
        f"{method.title[0].upper()}{method.title[1:]}. {method.summary}",
        "\n".join(f"- {fact.replace('..', '.')}" for fact in facts),
        table(AXES, [place(config)]),
        _figures(name, config),
        f'??? note "The recipe, `{name}.yaml`"\n\n    ```yaml\n{file}\n    ```',
    ]
    return "\n\n".join(parts)


def _figures(name: str, config: RunConfig | DiffusionConfig) -> str:
    rows = _measured().get(name)
    if not rows:
        return "Not measured yet."
    lines = [
        [label, *(format_value(metric, value) for value in rows[metric][:2]), f"{least}–{most}"]
        for metric, label in HEADLINES.items()
        if metric in rows
        for least, most in [[format_value(metric, value) for value in rows[metric][2:]]]
    ]
    header = [f"here, on `{_task(config)}`, {config.optimizer.steps} updates", "before", "after", "over seeds"]
    return table(header, lines)


def _read(name: str) -> tuple[RunConfig | DiffusionConfig, MethodConfig]:
    config = read(name)
    if config.method is None:
        raise ValueError(f"the recipe {name} says nothing about itself; give it a method with a title and a source")
    return config, config.method


@cache
def _measured() -> dict[str, dict[str, list[float]]]:
    return json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
