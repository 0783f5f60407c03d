"""The page of a pipeline: graph of stages, their results, and links to their reports. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from os.path import relpath
from pathlib import Path
from typing import Any
from urllib.parse import quote

from opd.data.strict_json import parse
from opd.errors import DataError
from opd.output.format import format_value, headline, main_metric
from opd.output.run_folder import write_text
from opd.report.block import LONGEST_TOKEN, bounded, data_block
from opd.report.data import BUDGET
from opd.report.files import measured, read_json, read_metrics
from opd.report.page import REPORT, assemble

DATA = "pipeline.json"
"""File in the pipeline's folder with the state of all stages."""

MOST_POINTS = 200
"""Largest number of a stage's evaluations in its small curve."""

SCRIPTS = ("dom.js", "shared.js", "pipeline.js")
SECTIONS = {"short": "Summary", "graph": "Graph", "stages": "Stages", "metrics": "Metrics"}

Tree = dict[str, Any]


def is_pipeline(folder: Path) -> bool:
    """Whether the folder is a pipeline's, not a run's."""
    return (folder / DATA).is_file() and not (folder / "run.json").is_file()


def check_alone(folders: Sequence[Path]) -> None:
    """Refuse a pipeline beside other folders.

    Raises:
        DataError: one of several folders is a pipeline's.
    """
    if len(folders) > 1 and (pipelines := [folder for folder in folders if is_pipeline(folder)]):
        raise DataError(f"'{pipelines[0]}' is a pipeline and cannot be shown beside others. Fix: name it alone")


def write_pipeline_page(folder: Path, path: Path | None = None) -> Path:
    """Write the page of a pipeline, by default into its folder; links are relative to the page."""
    path = path or folder / REPORT
    write_text(path, pipeline_page(pipeline_data(folder, path.parent)))
    return path


def pipeline_page(tree: Tree) -> str:
    """The whole page."""
    return assemble(
        "pipeline.html",
        title=tree["name"],
        tree=tree,
        sections=SECTIONS,
        scripts=SCRIPTS,
        styles=("style.css",),
        connect=bool(tree["live"]),
    )


def stage_names(folder: Path) -> list[str]:
    """The names of a pipeline's stages; none if its file cannot be read."""
    stages = (read_json(folder / DATA) or {}).get("stages")
    return list(stages) if isinstance(stages, dict) else []


def stage_path(name: str) -> str:
    """The path of a stage's page on the server of a live pipeline."""
    return f"stage/{quote(name, safe='')}/"


def pipeline_data(folder: Path, beside: Path | None = None, *, live: str = "") -> Tree:
    """The page's data as JSON values.

    Args:
        folder: the pipeline's folder.
        beside: folder of the page; None for the pipeline's folder.
        live: name of these data on the server that the page polls for newer ones; its links lead to the stages' live
            pages. Empty for a file.

    Raises:
        DataError: the folder has no pipeline.json, or it cannot be read.
    """
    try:
        found = parse((folder / DATA).read_bytes())
        tree = bounded(
            {
                "live": live,
                "name": folder.resolve().name,
                "config": found.get("config") or {},
                "seconds": found.get("seconds"),
                "stages": [
                    _stage(folder, None if live else beside or folder, name, stage)
                    for name, stage in found["stages"].items()
                ],
                "tables": [
                    _table(name, stage["metrics"]) for name, stage in found["stages"].items() if _measures(stage)
                ],
            }
        )
    except FileNotFoundError:
        raise DataError(
            f"'{folder}' is no pipeline of opd: it has no {DATA}. Fix: name the pipeline's folder"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"'{folder / DATA}' has unexpected content. Fix: run the pipeline again") from None
    _fit(tree)
    shown: Tree = tree
    return shown


def _fit(tree: Tree) -> None:
    """Leave out the pipeline's file, then the tables, then curves and long texts, until the page is below 5 MB."""

    def over() -> bool:
        return len(data_block(tree).encode()) > BUDGET

    for key in ("config", "tables"):
        if over():
            tree[key] = type(tree[key])()
    for stage in tree["stages"] if over() else ():
        stage.update(course=[], title=stage["kind"], problem=bounded(stage["problem"], LONGEST_TOKEN))


def _measures(stage: Mapping[str, Any]) -> bool:
    return stage["kind"] == "eval" and bool(stage.get("metrics"))


def _stage(folder: Path, beside: Path | None, name: str, stage: Mapping[str, Any]) -> Tree:
    """A stage with its main metric before, after and at best, as text, and that metric over the steps.

    Args:
        beside: folder of the page; None for a live one.
    """
    lines = read_metrics(folder / name / "metrics.jsonl") if stage["kind"] == "train" else []
    evals = [(line["step"], line["eval"]) for line in lines if "eval" in line]
    metric = main_metric(stage.get("before") or (evals[0][1] if evals else {}))
    shown = {when: _cell(metric, stage.get(when) or {}) for when in ("before", "after", "best")}
    course = [[step, found[metric]] for step, found in evals if metric in found and _finite(found[metric])]
    report = folder / name / (REPORT if beside else "run.json")
    address = Path(relpath(report, beside)).as_posix() if beside else f"stage/{name}/"
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
        "course": course[-1 :: -(ceil(len(course) / MOST_POINTS) or 1)][::-1],
        "report": address if report.is_file() else None,
    }


def _table(name: str, models: Mapping[str, Mapping[str, float]]) -> Tree:
    """A table with a row per model; the best accuracies are marked."""
    models = {model: measured(metrics) for model, metrics in models.items()}
    columns = list(dict.fromkeys(column for metrics in models.values() for column in headline(metrics)))
    best = {
        column: max(metrics[column] for metrics in models.values() if column in metrics)
        for column in columns
        if column.startswith(("accuracy", "avg@", "reward"))
    }
    rows = []
    for model, metrics in models.items():
        cells = [[_cell(c, metrics), c in best and metrics.get(c) == best[c]] for c in columns]
        rows.append({"model": model.removeprefix("stage:"), "cells": cells})
    return {"name": name, "columns": columns, "rows": rows}


def _cell(name: str | None, metrics: Mapping[str, float | None]) -> str:
    value = metrics.get(name) if name is not None else None
    return format_value(str(name), value) if value is not None else ""


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
