"""The model card: README.md of a run's folder with recipe, teacher, metrics and settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from opd.config.run import BaseRun
from opd.output import provenance
from opd.output.format import format_value, headline
from opd.output.result import Result


def model_card(config: BaseRun, result: Result, *, library: str, facts: Sequence[str]) -> str:
    """The card as Markdown with the front matter of the Hugging Face hub.

    Args:
        library: name of the library that loads the model.
        facts: lines about teacher, loss and cost.
    """
    method = config.method
    title = method.title if method else "own recipe"
    columns = (result.before, result.after, result.best)
    rows = [
        f"| {name} | {' | '.join(format_value(name, metrics[name]) for metrics in columns)} |"
        for name in headline(result.before)
        if all(name in metrics for metrics in columns)
    ]
    table = ["| | before | after | best |", "|---|---|---|---|", *rows] if rows else ["The run had no evaluation."]
    stopped = [f"Stopped by the guard `{result.stopped_by}`: {result.reason}.", ""] if result.stopped_by else []
    settings = yaml.safe_dump(
        config.model_dump(mode="json", exclude={"method"}, exclude_defaults=True), sort_keys=False
    )
    lines = [
        "---",
        f"library_name: {library}",
        *([f"base_model: {config.student}"] if _on_the_hub(config.student) else []),
        "tags: [opd, on-policy-distillation]",
        "---",
        f"# {config.student}, distilled on-policy: {title}",
        "",
        *[f"- {fact}" for fact in (*facts, *provenance.facts(result.out))],
        *([f"- Source: {method.source}"] if method else []),
        "",
        *table,
        "",
        *stopped,
        "Made with opd. The run file:",
        "",
        "```yaml",
        settings.rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _on_the_hub(name: str) -> bool:
    """Whether a student's name is a hub id, the only form that the card's metadata may have."""
    bundled = name.startswith("nano/")
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not bundled and not Path(name).exists()
