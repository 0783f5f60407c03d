"""Signs that something is wrong with a run; the page shows them before anything else. No torch here.

What counts as one is said elsewhere: by the contract of a rollout (tokens outside its turns are nobody's choice), by
``opd.training.guards``, whose thresholds the run file may set, and by the gate's question whether a teacher is better
than its student.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opd.output.format import figure
from opd.training.guards import LEAST, SYMPTOMS, Watch, typical, watched

Tree = dict[str, Any]

TEACHER = "teacher_accuracy"

ALONE = frozenset(SYMPTOMS) - {"kl_vanished"}
"""Symptoms to mention where the student does no worse; one that has become its teacher has no KL left, and well so."""


def signs(config: Mapping[str, Any], lines: Sequence[Tree], rollouts: Sequence[Tree]) -> list[Tree]:
    """Everything that looks wrong, what is surely wrong first.

    Args:
        config: of ``run.json``.
        lines: of ``metrics.jsonl``.
        rollouts: as the page wants them.

    Returns:
        Each with ``kind``, ``alarm`` (else it is only worth a look), ``text``, and ``at``: step, kind, number and
        position of a token that shows it, or None.
    """
    evals = [line["eval"] for line in lines if "eval" in line]
    steps = [line["train"] for line in lines if "train" in line]
    found = [*_masks(rollouts), *_teachers(evals), *_symptoms(config, steps)]
    return sorted(found, key=lambda sign: not sign["alarm"])


def _sign(kind: str, text: str, *, alarm: bool = True, at: list[Any] | None = None) -> Tree:
    return {"kind": kind, "alarm": alarm, "text": text, "at": at}


def strangers(rollout: Mapping[str, Any]) -> list[int]:
    """Positions in the loss, or to be, that stand outside every turn: nobody but the environment wrote them."""
    turns = {p for start, stop in rollout["turns"] for p in range(start, stop)}
    counted = {p for term in rollout["terms"] for p in term["position"]} if rollout["terms"] else rollout["own"]
    return sorted(set(counted) - turns)


def _masks(rollouts: Sequence[Tree]) -> Iterator[Tree]:
    """Inserted tokens that are trained on, and drawn ones that are not."""
    inserted = [(rollout, position) for rollout in rollouts for position in strangers(rollout)]
    missed = [(rollout, position) for rollout in rollouts for position in rollout.get("missed", ())]
    for kind, places, one, many, what in (
        (
            "inserted",
            inserted,
            "inserted token is",
            "inserted tokens are",
            "in the loss, and the student chose none of them",
        ),
        ("missed", missed, "of the student's own tokens is", "of the student's own tokens are", "left out of the loss"),
    ):
        if places:
            rollout, position = places[0]
            texts = dict.fromkeys(f"“{r['text'][p].strip() or '␣'}”" for r, p in places)
            among = f"{len({id(r) for r, _ in places})} of {len(rollouts)} recorded rollouts"
            count = f"{len(places):,} {one if len(places) == 1 else many}"
            text = (
                f"{count} {what}: {', '.join([*texts][:3])}, in {among}. The completion mask is not where it belongs."
            )
            yield _sign(kind, text, at=[rollout["step"], rollout["of"], rollout["n"], position])


def _teachers(evals: Sequence[Mapping[str, float]]) -> Iterator[Tree]:
    """Teachers that were no better than the student when the run began."""
    first = evals[0] if evals else {}
    for name, theirs in first.items():
        if name != TEACHER and not name.startswith(f"{TEACHER}/"):
            continue
        _, _, label = name.partition("/")
        domain, _, who = label.partition("/")
        if label and not who and TEACHER in first and "accuracy/" + domain not in first:
            continue  # the same figure as the whole's
        ours = first.get(f"accuracy/{domain}", first.get("accuracy"))
        if ours is None or theirs > ours or ours == 1:
            continue
        subject = f"The teacher {who}" if who else "The teacher"
        where = f" of {domain}" if domain else ""
        known = f"{figure(TEACHER, theirs)} right, and the student {figure('accuracy', ours)}"
        yield _sign("teacher", f"{subject} was no better than the student on held-out prompts{where}: {known}.")


def _symptoms(config: Mapping[str, Any], steps: Sequence[Mapping[str, float]]) -> Iterator[Tree]:
    """What the watch of a recovery would say of the last steps, whether the run has one or not."""
    recent = [figures for figures in map(watched, steps) if figures]
    if len(recent) < LEAST:
        return
    given = (config.get("guards") or {}).get("recover") or {}
    watch = Watch(**(given.get("thresholds") or {}), prompts=(config.get("rollout") or {}).get("prompts_per_step", 1))
    parts = [recent[0], *(typical(recent[: i + 1]) for i in range(LEAST - 1, len(recent)))]
    top = max(part.get("accuracy", 0.0) for part in parts)
    first, now = recent[0], typical(recent)
    shown = watch.symptoms(first, now)
    harmful = [name for name in shown if watch.harmed(name, first, top, now)]
    if harmful:
        fell = f"accuracy from {top:.1%} at its best to {now['accuracy']:.1%}; with it " if "accuracy" in now else ""
        went = ", ".join(_went(name, first, now) for name in harmful)
        yield _sign("+".join(harmful), f"The rollouts show a collapse: {fell}{went}.")
    better = "accuracy" in now and watch.fell(now["accuracy"], first.get("accuracy", 0.0), 0.0)
    for name in shown:
        if name in ALONE and name not in harmful and not better:
            excuse = "The student is no worse for it, and no better either."
            yield _sign(name, f"In its rollouts: {_went(name, first, now)}. {excuse}", alarm=False)


def _went(name: str, first: Mapping[str, float], now: Mapping[str, float]) -> str:
    symptom = SYMPTOMS[name]
    words, form = symptom.words
    was, is_ = (form.format(round(figures[symptom.metric], 4) + 0.0) for figures in (first, now))  # no −0.000
    return f"{words} from {was} to {is_}"
