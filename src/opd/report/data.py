"""Data of a run's page, read from its folder in any state: running, killed, stopped, finished. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from opd.axes.base import AXES
from opd.axes.divergence import WORDS
from opd.axes.signals.base import SignalConfig
from opd.errors import DataError
from opd.models.folders import ADAPTER
from opd.report.block import bounded, bounded_row, data_block
from opd.report.facts import PARTS, facts, teaching, times
from opd.report.files import ROLLOUTS, measured, read_json, read_metrics, read_rollouts
from opd.report.rows import is_result, is_rollout
from opd.report.signs import signs
from opd.report.speech import parts
from opd.training.guards import better

BUDGET = 4_200_000
"""Characters for a page's rollouts; the whole report then stays below 5 MB."""

BESIDE = frozenset({"train", "eval", "events", "config"})
"""Parts of a run's data that have bounds of their own."""

MOST_VALUES, MOST_METRICS, MOST_EVENTS, MOST_SPECIALS = 40_000, 400, 300, 300
"""Largest numbers of values of a kind of metrics, of metrics, of events and of special tokens in a page."""

FITTINGS = 4
"""Attempts to fit rollouts, before the page goes without them."""

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
    recorded = read_rollouts(folder / ROLLOUTS)
    rows = [bounded_row(row) for row in recorded if is_rollout(row)]
    rollouts, vocabulary, prompts = _rollouts(rows)
    try:
        run = {
            **about,
            "labels": (labels := _labels(config)),
            "teaching": teaching(config),
            "facts": list(facts(config, labels["distill"], adapter=_from_adapter(folder, config.get("student")))),
            "prompts": prompts,
            "signs": signs(config, lines, rollouts),
            "vocabulary": vocabulary,
            "specials": sorted({mark for row in rows for mark in _marks(row)})[:MOST_SPECIALS],
            "rollouts": rollouts,
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"'{folder / 'run.json'}' was not written by opd ({type(error).__name__}: {error}). Fix: name a run's "
            "folder"
        ) from None
    left_out = _fit_whole(run, budget)
    broken = len(recorded) - len(rows)
    return run | {"left_out": ", ".join(filter(None, [left_out, f"{broken} damaged rows" if broken else ""]))}


def about_run(folder: Path, lines: Sequence[Tree]) -> Tree:
    """Data that the pages of both families share: run file, result, metrics and events.

    Args:
        folder: the run's folder.
        lines: lines of its ``metrics.jsonl``.

    Raises:
        DataError: the folder has no run.
    """
    if not (folder / "run.json").is_file():
        reason = "it has no run.json" if folder.exists() else "there is no such folder"
        raise DataError(f"'{folder}' is no run of opd: {reason}. Fix: name a run's folder")
    config = read_json(folder / "run.json") or {}
    if not all(isinstance(config.get(key) or {}, Mapping) for key in ("method", "loss", "teacher", "rollout", "eval")):
        raise DataError(f"'{folder / 'run.json'}' was not written by opd. Fix: name a run's folder")
    result = read_json(folder / "result.json")
    if result is not None and not is_result(result):
        raise DataError(f"'{folder / 'result.json'}' was not written by opd. Fix: delete it, or name a run's folder")
    method = config.get("method") or {}
    events = [{"step": line["step"], **line["event"]} for line in lines if "event" in line]
    about = {
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
        "best_step": _best_step([(line["step"], line["eval"]) for line in lines if "eval" in line]),
        "ends_with_best": result is not None and result.get("after") == result.get("best"),
        "times": times([line["train"] for line in lines if "train" in line], (result or {}).get("seconds")),
        "train": _series(lines, "train"),
        "eval": _series(lines, "eval"),
        "events": events[-MOST_EVENTS:],
    }
    found: Tree = bounded(about)
    return found


def _from_adapter(folder: Path, student: Any) -> bool | None:
    """Whether the student came as an adapter, by the run's model or the student's folder; None without both."""
    for place in (folder, Path(str(student))):
        if (place / ADAPTER).is_file() or (place / "config.json").is_file():
            return (place / ADAPTER).is_file()
    return None


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


def _best_step(evals: Sequence[tuple[int, Tree]]) -> int | None:
    """The step of the best weights: the last evaluation's if none is better, else the first of the best ones."""
    best: tuple[int, Tree] | None = None
    for step, metrics in evals:
        if best is None or better(metrics, best[1]):
            best = step, metrics
    if best is None:
        return None
    return best[0] if better(best[1], evals[-1][1]) else evals[-1][0]


def _rollouts(rows: Sequence[Tree]) -> tuple[list[Tree], list[str], list[Tree]]:
    """The page's rollouts, the vocabulary of their likeliest tokens, and their prompts, each once."""
    vocabulary: dict[str, int] = {}
    prompts: dict[str, int] = {}
    shown: dict[tuple[Any, ...], Tree] = {}
    for row in rows:
        if row["of"] in EVERY_KIND:
            prompt = {key: row.get(key) for key in ("prompt_text", "messages", "tools")}
            number = prompts.setdefault(json.dumps(prompt), len(prompts))
            shown[row["step"], row["of"], row["n"]] = {**_rollout(row, vocabulary), "asked": number}
    for row in rows:
        about = shown.get(tuple(row.get("about", ())))
        if about is None:
            continue
        if row["of"] == "after":
            about["after"] = row["logprob"]
        else:
            about.setdefault("again", []).append([row["step"], row["logprob"]])
    kept = sorted(shown.values(), key=lambda r: (r["step"], r["of"] != "eval", r["n"]))
    return kept, list(vocabulary), [json.loads(prompt) for prompt in prompts]


def _rollout(row: Mapping[str, Any], vocabulary: dict[str, int]) -> Tree:
    keys = ("step", "of", "n", "prompt", "domain", "answer", "ids", "text", "own", "special", "drawn")
    more = ("turns", "events", "reward", "finish", "source")
    student = _compact(row["student"], vocabulary)
    terms = [{**term, "teachers": [_compact(t, vocabulary) for t in term["teachers"]]} for term in row["terms"]]
    known = {key: row[key] for key in keys + more}
    known |= {"correct": row.get("correct"), "missed": row.get("missed", []), "bytes": row.get("bytes", {})}
    return {**known, "parts": parts(row), "student": student, "terms": terms}


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
    while over() and rollouts:
        rollouts.pop(max(range(len(rollouts)), key=lambda i: (rollouts[i]["n"], rollouts[i]["step"])))
        removed["prompts"] = "some prompts"
    return ", ".join(removed.values())


def _fit_whole(run: Tree, budget: int) -> str:
    """Remove data until all of the run fits; its texts count as they are escaped in the page."""
    left_out, room = "", budget
    for _ in range(FITTINGS):
        left_out = _fit(run["rollouts"], room) or left_out
        _only_used(run)
        excess = _size({key: run[key] for key in run if key not in BESIDE}) - budget
        if excess <= 0:
            return left_out
        room -= excess
    run["rollouts"].clear()
    _only_used(run)
    return "all rollouts"


def _only_used(run: Tree) -> None:
    """Leave out tokens of the vocabulary and prompts that no rollout has any more."""
    asked: dict[int, int] = {}
    for rollout in run["rollouts"]:
        rollout["asked"] = asked.setdefault(rollout["asked"], len(asked))
    run["prompts"] = [run["prompts"][prompt] for prompt in asked]
    number: dict[int, int] = {}
    for rollout in run["rollouts"]:
        for scores in (rollout["student"], *(t for term in rollout["terms"] for t in term["teachers"])):
            for pairs in scores.get("top", ()):
                pairs[::2] = [number.setdefault(token, len(number)) for token in pairs[::2]]
    run["vocabulary"] = [run["vocabulary"][token] for token in number]


def _size(tree: Tree) -> int:
    return len(data_block(tree).encode())


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
    """Metrics as columns over steps, with the tokens and seconds up to each; None if a step lacks a metric."""
    rows = [(line["step"], line[kind]) for line in lines if kind in line]
    names = list(dict.fromkeys(name for _, row in rows for name in row))[:MOST_METRICS]
    stride = ceil(len(rows) * len(names) / MOST_VALUES) or 1
    rows = rows[-1::-stride][::-1]  # of a very long run every second step, or fewer, and always the last one
    columns = {name: [_short(row.get(name)) for _, row in rows] for name in names}
    spent = _spent(lines)
    return {
        "step": [step for step, _ in rows],
        "tokens": [spent.get(step, (0, 0.0))[0] for step, _ in rows],
        "seconds": [round(spent.get(step, (0, 0.0))[1], 2) for step, _ in rows],
        "columns": columns,
    }


def _spent(lines: Sequence[Tree]) -> dict[int, tuple[int, float]]:
    """The tokens generated and the seconds of training up to each step; evaluations do not count."""
    found, tokens, seconds = {}, 0, 0.0
    for line in lines:
        metrics = line.get("train") or {}
        tokens += int(metrics.get("tokens") or 0)
        seconds += sum(metrics.get(name) or 0.0 for name in PARTS)
        found[line["step"]] = tokens, seconds
    return found


def _short(value: float | None) -> float | None:
    return None if value is None or value != value or abs(value) == float("inf") else float(f"{value:.5g}")
