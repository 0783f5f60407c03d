"""The page of a pipeline: its stages as a graph, what each came to, and the way to its own report. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os.path import relpath
from pathlib import Path
from typing import Any

from opd.errors import DataError
from opd.output.format import figure, headline
from opd.output.run_folder import write_text
from opd.pipelines.graph import REFERENCE
from opd.pipelines.progress import main_figure
from opd.pipelines.report import DATA
from opd.report.data import read_lines
from opd.report.page import REPORT, assemble

SCRIPTS = ("dom.js", "pipeline.js")

Tree = dict[str, Any]


def is_pipeline(folder: Path) -> bool:
    """Whether a pipeline has been there; the folders of its stages are runs."""
    return (folder / DATA).is_file() and not (folder / "run.json").is_file()


def write_pipeline_page(folder: Path, path: Path | None = None) -> Path:
    """Write the page of a pipeline, by default into its folder; links lead from where it lies."""
    path = path or folder / REPORT
    write_text(path, pipeline_page(pipeline_data(folder, path.parent)))
    return path


def pipeline_page(tree: Tree) -> str:
    """The whole page."""
    return assemble("pipeline.html", title=tree["name"], tree=tree, scripts=SCRIPTS, styles=("style.css",))


def pipeline_data(folder: Path, beside: Path | None = None) -> Tree:
    """What the page knows of a pipeline, ready for JSON.

    Args:
        folder: of the pipeline.
        beside: where the page will lie; by default there too.

    Raises:
        DataError: the folder holds no pipeline, or one whose file cannot be read.
    """
    try:
        found = json.loads((folder / DATA).read_text(encoding="utf-8"))
        stages = [_stage(folder, beside or folder, name, stage) for name, stage in found["stages"].items()]
    except FileNotFoundError:
        raise DataError(f"'{folder}' is no pipeline of opd: it has no {DATA}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"'{folder / DATA}' is not what a pipeline writes; run the pipeline again") from None
    return {
        "name": folder.resolve().name,
        "config": found.get("config") or {},
        "seconds": found.get("seconds"),
        "stages": stages,
        "tables": [_table(name, stage["figures"]) for name, stage in found["stages"].items() if _measures(stage)],
    }


def _measures(stage: Mapping[str, Any]) -> bool:
    return stage["kind"] == "eval" and bool(stage.get("figures"))


def _stage(folder: Path, beside: Path, name: str, stage: Mapping[str, Any]) -> Tree:
    """A stage with its figure before, after and at best, as text, and that figure's course."""
    lines = read_lines(folder / name / "metrics.jsonl") if stage["kind"] == "train" else []
    evals = [(line["step"], line["eval"]) for line in lines if "eval" in line]
    metric = main_figure(stage.get("before") or (evals[0][1] if evals else {}))
    shown = {when: _cell(metric, stage.get(when) or {}) for when in ("before", "after", "best")}
    report = folder / name / REPORT
    trained = [line["step"] for line in lines if "train" in line]
    return {
        "name": name,
        "kind": stage["kind"],
        "title": stage.get("title") or stage["kind"],
        "inputs": stage["inputs"],
        "state": stage["state"],
        "problem": stage.get("problem"),
        "stopped_by": stage.get("stopped_by"),
        "steps": stage.get("steps", trained[-1] if trained else None),
        "tokens": stage.get("tokens"),
        "seconds": stage.get("seconds"),
        "metric": metric,
        **shown,
        "course": [[step, found[metric]] for step, found in evals if metric in found and _finite(found[metric])],
        "report": Path(relpath(report, beside)).as_posix() if report.is_file() else None,
    }


def _table(name: str, figures: Mapping[str, Mapping[str, float]]) -> Tree:
    """A row per model; of shares of right answers the best is marked."""
    columns = list(dict.fromkeys(column for metrics in figures.values() for column in headline(metrics)))
    best = {
        column: max(metrics[column] for metrics in figures.values() if column in metrics)
        for column in columns
        if column.startswith(("accuracy", "avg@"))
    }
    rows = []
    for model, metrics in figures.items():
        reference = REFERENCE.fullmatch(model)
        cells = [[_cell(c, metrics), c in best and metrics.get(c) == best[c]] for c in columns]
        rows.append({"model": reference[1] if reference else model, "cells": cells})
    return {"name": name, "columns": columns, "rows": rows}


def _cell(name: str | None, metrics: Mapping[str, float]) -> str:
    return figure(name, metrics[name]) if name is not None and name in metrics else ""


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
