"""Result files of a pipeline: ``pipeline.json`` for programs and ``report.md`` to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opd.output.format import format_value, headline, main_metric
from opd.pipelines.config import PipelineConfig
from opd.pipelines.graph import REFERENCE
from opd.pipelines.progress import Row

REPORT = "report.md"


def data(config: PipelineConfig, rows: Mapping[str, Row], seconds: float) -> dict[str, Any]:
    """Content of ``pipeline.json``: each stage's state and, once it is finished, its fingerprint and result."""
    stages = {}
    for name, row in rows.items():
        stages[name] = {
            "kind": row.stage.kind,
            "title": row.stage.title,
            "inputs": list(row.stage.inputs),
            "state": row.state,
            "problem": row.problem or None,
            "fingerprint": row.record["fingerprint"] if row.record else None,
            **row.result,
        }
    return {"config": config.model_dump(mode="json"), "seconds": seconds, "stages": stages}


def report(out: Path, rows: Mapping[str, Row], seconds: float) -> str:
    """Content of ``report.md``: graph, table of stages, one table per evaluation stage, and problems."""
    lines = [f"# {out.name}", "", "```mermaid", *_diagram(rows), "```", "", *_stages(rows)]
    for row in rows.values():
        if row.stage.kind == "eval" and row.result:
            lines += ["", f"## {row.stage.name}", "", *_metrics(row.result["metrics"])]
    tokens = sum(row.result.get("tokens", 0) for row in rows.values())
    spent = sum(row.seconds for row in rows.values() if row.record)
    problems = [f"- {row.problem}" for row in rows.values() if row.problem]
    lines += ["", *(["## Problems", "", *problems, ""] if problems else [])]
    lines += [f"{tokens:,} student tokens and {spent:.0f} s in all stages; {seconds:.0f} s since the last start.", ""]
    return "\n".join(lines)


def _diagram(rows: Mapping[str, Row]) -> list[str]:
    """The graph for mermaid. Boxes have numbers as ids, because some names are keywords of mermaid."""
    number = {name: f"s{i}" for i, name in enumerate(rows)}
    boxes = [f'    {number[name]}["{name}<br/>{row.stage.title}"]' for name, row in rows.items()]
    arrows = [f"    {number[i]} --> {number[name]}" for name, row in rows.items() for i in row.stage.inputs]
    return ["graph LR", *boxes, *arrows]


def _stages(rows: Mapping[str, Row]) -> list[str]:
    lines = ["| stage | | state | steps | metric | before | after | best | tokens | seconds |", "|" + "---|" * 10]
    for name, row in rows.items():
        result = row.result
        metric = main_metric(result.get("before", {})) or ""
        values = [_cell(metric, result.get(when, {})) for when in ("before", "after", "best")]
        cells = [name, row.stage.title, row.state, str(result.get("steps", "")), metric, *values]
        counts = [f"{result['tokens']:,}" if "tokens" in result else "", f"{row.seconds:.0f}" if row.record else ""]
        lines.append(f"| {' | '.join([*cells, *counts])} |")
    return lines


def _metrics(models: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A table with a row per model."""
    names = list(dict.fromkeys(name for metrics in models.values() for name in headline(metrics)))
    lines = [f"| model | {' | '.join(names)} |", "|" + "---|" * (len(names) + 1)]
    for model, metrics in models.items():
        reference = REFERENCE.fullmatch(model)
        cells = [reference[1] if reference else model, *(_cell(name, metrics) for name in names)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(name: str, metrics: Mapping[str, float]) -> str:
    return format_value(name, metrics[name]) if name in metrics else ""
