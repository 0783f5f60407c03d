"""The README.md of a run's folder: which recipe, teacher and figures made the model."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from opd.config.run import BaseRun
from opd.output.format import figure, headline
from opd.output.result import Result


def model_card(config: BaseRun, result: Result, *, library: str, facts: Sequence[str]) -> str:
    """Markdown with the front matter of the Hugging Face hub.

    Args:
        library: that loads the model.
        facts: about teacher, loss and cost, a line each.
    """
    method = config.method
    title = method.title if method else "own recipe"
    rows = [
        f"| {name} | {figure(name, before)} | {figure(name, result.after[name])} | {figure(name, result.best[name])} |"
        for name, before in headline(result.before).items()
        if name in result.after and name in result.best
    ]
    table = ["| | before | after | best |", "|---|---|---|---|", *rows] if rows else ["Nothing was measured."]
    stopped = (
        [f"Stopped by the guard `{result.stopped_by}`: {result.events[-1]['text']}.", ""] if result.stopped_by else []
    )
    settings = yaml.safe_dump(
        config.model_dump(mode="json", exclude={"method"}, exclude_defaults=True), sort_keys=False
    )
    lines = [
        "---",
        f"library_name: {library}",
        f"base_model: {config.student}",
        "tags: [opd, on-policy-distillation]",
        "---",
        f"# {config.student}, distilled on-policy: {title}",
        "",
        *[f"- {fact}" for fact in facts],
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
