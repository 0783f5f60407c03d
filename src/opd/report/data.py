"""Data of a run's page, read from its folder in any state: running, killed, stopped, finished. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from opd.axes.base import AXES, AxisValue
from opd.axes.divergence import WORDS
from opd.axes.signals.base import SignalConfig
from opd.errors import DataError
from opd.report.files import ROLLOUTS, measured, read_json, read_metrics, read_rollouts
from opd.report.signs import signs

BUDGET = 4_200_000
"""Characters for a page's rollouts; the whole report then stays below 5 MB."""

RARE = -9.21
"""log 0.0001: likeliest tokens below it are left out, except the first two."""

EVERY_KIND = {"eval", "train"}

LIKELIEST = "the likeliest tokens"

Tree = dict[str, Any]


def run_data(folder: Path, *, budget: int = BUDGET) -> Tree:
    """The page's data of one run, as JSON values.

    Args:
        folder: the run's folder.
        budget: characters for its rollouts.

    Raises:
        DataError: the folder has no run.
    """
    lines = read_metrics(folder / "metrics.jsonl")
    about = about_run(folder, lines)
    config = about["config"]
    rows = read_rollouts(folder / ROLLOUTS)
    rollouts, vocabulary = _rollouts(rows)
    wrong = signs(config, lines, rollouts)
    left_out = _fit(rollouts, budget)
    return {
        **about,
        "labels": _labels(config),
        "teaching": _teaching(config),
        "signs": wrong,
        "vocabulary": vocabulary,
        "specials": sorted({mark for row in rows for mark in _marks(row)}),
        "rollouts": rollouts,
        "left_out": left_out,
    }


def about_run(folder: Path, lines: Sequence[Tree]) -> Tree:
    """Data that the pages of both families share: run file, result, metrics and events.

    Args:
        folder: the run's folder.
        lines: lines of its ``metrics.jsonl``.

    Raises:
        DataError: the folder has no run.
    """
    if not (folder / "run.json").is_file():
        raise DataError(f"'{folder}' is no run of opd: it has no run.json. Fix: name a run's folder")
    config = read_json(folder / "run.json") or {}
    result = read_json(folder / "result.json")
    method = config.get("method") or {}
    return {
        "name": folder.resolve().name,
        "title": method.get("title") or "",
        "summary": method.get("summary") or "",
        "source": method.get("source") or "",
        "config": config,
        "finished": result is not None,
        "stopped_by": (result or {}).get("stopped_by"),
        "seconds": (result or {}).get("seconds"),
        "tokens": (result or {}).get("tokens"),
        "best": measured((result or {}).get("best") or {}),
        "train": _series(lines, "train"),
        "eval": _series(lines, "eval"),
        "events": [{"step": line["step"], **line["event"]} for line in lines if "event" in line],
    }


def _teaching(config: Mapping[str, Any]) -> str:
    """A sentence on what scored the rollouts, in the words of the axis values."""
    teacher, loss = config.get("teacher") or {}, config.get("loss") or {}
    signal = _shipped("loss.signal", loss.get("signal"))
    if signal is not None and (sentence := getattr(signal, "without_teacher", "")):
        return str(sentence)
    several = list(teacher.get("models") or {})
    weights = _shipped("teacher.weights", teacher.get("weights"))
    own = getattr(weights, "report", "a teacher")
    who = f"another model ({teacher['model']})" if teacher.get("model") else own
    who = f"{len(several)} teachers ({', '.join(several)})" if several else who
    sees = getattr(_shipped("teacher.view", teacher.get("view")), "report", "with a view of its own")
    return f"The student generated the rollouts; every token was scored by {who}, {sees}."


def _shipped(axis: str, value: Any) -> type[AxisValue] | None:
    """The shipped class of a value in ``run.json``; None for a user's own."""
    return AXES[axis].get(str((value or {}).get("type")))


def _labels(config: Mapping[str, Any]) -> Tree:
    """Names of the terms' losses. No class of a user's own is imported for it."""
    loss = config.get("loss") or {}
    signal, divergence = loss.get("signal") or {}, loss.get("divergence") or {}
    kind, name = str(signal.get("type")), str(divergence.get("type", "divergence"))
    words = WORDS.get(name, name.replace("_", " "))
    known = AXES["loss.signal"].get(kind)
    main = kind
    if known is not None and issubclass(known, SignalConfig):
        main = known.model_construct(**signal).label(words)
    return {
        "distill": main,
        "policy_gradient": "policy-gradient loss",
        "anchor": "reverse KL to the initial weights",
        "sft": "cross-entropy",
        "teacher_entropy": "forward KL",
    }


def _marks(row: Mapping[str, Any]) -> list[str]:
    """The special tokens of a rollout's prompt and completion."""
    return [*row.get("marks", []), *(row["text"][position] for position in row.get("special", []))]


def _rollouts(rows: Sequence[Tree]) -> tuple[list[Tree], list[str]]:
    """The page's rollouts, and the vocabulary of their likeliest tokens."""
    vocabulary: dict[str, int] = {}
    shown: dict[tuple[Any, ...], Tree] = {}
    for row in rows:
        if row["of"] in EVERY_KIND:
            shown[row["step"], row["of"], row["n"]] = _rollout(row, vocabulary)
    for row in rows:
        about = shown.get(tuple(row.get("about", ())))
        if about is None:
            continue
        if row["of"] == "after":
            about["after"] = row["logprob"]
        else:
            about.setdefault("again", []).append([row["step"], row["logprob"]])
    kept = sorted(shown.values(), key=lambda r: (r["step"], r["of"] != "eval", r["n"]))
    return kept, list(vocabulary)


def _rollout(row: Mapping[str, Any], vocabulary: dict[str, int]) -> Tree:
    keys = ("step", "of", "n", "prompt", "domain", "answer", "prompt_text", "ids", "text", "own", "special", "drawn")
    more = ("turns", "events", "reward", "finish", "source")
    student = _compact(row["student"], vocabulary)
    terms = [{**term, "teachers": [_compact(t, vocabulary) for t in term["teachers"]]} for term in row["terms"]]
    known = {key: row[key] for key in keys + more}
    return {**known, "correct": row.get("correct"), "missed": row.get("missed", []), "student": student, "terms": terms}


def _compact(scores: Mapping[str, Any], vocabulary: dict[str, int]) -> Tree:
    """A model's scores, with the likeliest tokens per position as [vocabulary index, logprob, index, logprob, ...]."""
    line = {key: value for key, value in scores.items() if not key.startswith("top")}
    if "top" in scores:
        line["top"] = []
        for texts, logprobs in zip(scores["top"], scores["top_logprob"], strict=True):
            pairs: list[float] = []
            for place, (text, logprob) in enumerate(zip(texts, logprobs, strict=True)):
                if place < 2 or logprob > RARE:
                    pairs += [vocabulary.setdefault(text, len(vocabulary)), round(logprob, 4)]
            line["top"].append(pairs)
    return line


def _fit(rollouts: list[Tree], budget: int) -> str:
    """Remove the least informative data, stage by stage, until the rest fits; returns a description of the removed."""
    sizes = {id(r): _size(r) for r in rollouts}
    removed: dict[str, str] = {}

    def over() -> bool:
        return sum(sizes[id(r)] for r in rollouts) > budget

    def thin(share: float) -> None:
        for rollout in rollouts:
            _keep_likeliest(rollout, share)
            sizes[id(rollout)] = _size(rollout)
        removed["top"] = f"the likeliest tokens of all but the worst {share:.0%} of positions" if share else LIKELIEST

    def halve() -> None:
        steps = sorted({r["step"] for r in rollouts})
        rollouts[:] = [r for r in rollouts if r["step"] not in set(steps[1:-1:2])]
        removed["steps"] = "intermediate steps"

    def only_held_out() -> None:
        rollouts[:] = [r for r in rollouts if r["of"] == "eval"] or rollouts
        removed["train"] = "training rollouts"

    for stage in (partial(thin, 0.25), halve, partial(thin, 0.05), only_held_out, halve, partial(thin, 0.0), halve):
        if over():
            stage()
    while over() and len(rollouts) > 1:
        rollouts.pop(max(range(len(rollouts)), key=lambda i: (rollouts[i]["n"], rollouts[i]["step"])))
        removed["prompts"] = "some prompts"
    return ", ".join(removed.values())


def _size(rollout: Tree) -> int:
    return len(json.dumps(rollout, separators=(",", ":"), ensure_ascii=False).encode())


def _keep_likeliest(rollout: Tree, share: float) -> None:
    """Keep the likeliest tokens only at the positions with the largest loss."""
    lead: dict[int, float] = {}
    for term in rollout["terms"]:
        for position, loss in zip(term["position"], term["loss"], strict=True):
            lead.setdefault(position, loss)
    ranked = sorted(lead, key=lambda position: -abs(lead[position]))
    kept = set(ranked[: ceil(share * len(rollout["own"]))])
    models = [(rollout["student"], rollout["own"])]
    for term in rollout["terms"]:
        for scores in term["teachers"]:
            models.append((scores, [term["position"][row] for row in scores.get("row", range(len(term["position"])))]))
    for scores, positions in models:
        if "top" in scores:
            scores["top"] = [row if p in kept else [] for row, p in zip(scores["top"], positions, strict=True)]


def _series(lines: Sequence[Tree], kind: str) -> Tree:
    """Metrics as columns over steps; None if a step lacks a metric."""
    rows = [(line["step"], line[kind]) for line in lines if kind in line]
    names = dict.fromkeys(name for _, row in rows for name in row)
    columns = {name: [_short(row.get(name)) for _, row in rows] for name in names}
    return {"step": [step for step, _ in rows], "columns": columns}


def _short(value: float | None) -> float | None:
    return None if value is None or value != value or abs(value) == float("inf") else float(f"{value:.5g}")
