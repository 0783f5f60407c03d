"""Rollouts that are made and scored once, before the first step; training then needs no teacher."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from opd.data.strict_json import lines, parse
from opd.errors import CheckpointError
from opd.losses.objectives import FullVocabulary
from opd.rollouts.sampler import ALL_TURNS
from opd.signals import SampledSignal, TopKSignal
from opd.teachers.local import LocalTeacher
from opd.teachers.sampled import SampledTeacher
from opd.teachers.top_k import TopKTeacher
from opd.teachers.views import runs
from opd.types import Prompt, Rollout, RolloutSource, Segment, Span, Term, View


class Likeliest(NamedTuple):
    """The teacher's likeliest tokens at a position, with their log-probabilities and that of all others together."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    rest: float


@dataclass(frozen=True, slots=True)
class _Take:
    """A rollout and what the teacher said about it.

    Attributes:
        teacher_logprobs: of each of its tokens; NaN without a target.
        likeliest: at each scored position; empty if sampled tokens alone were recorded.
    """

    rollout: Rollout
    teacher_logprobs: tuple[float, ...]
    likeliest: Mapping[int, Likeliest] = field(default_factory=dict)


class Recording:
    """Plays back recorded rollouts and their teacher scores: a rollout source, a view and a teacher in one.

    The student moves away from the distribution that the rollouts were drawn from, so they are on-policy only at the
    start. The result approaches that of online training only if the student was first trained on the same teacher's
    answers.

    Args:
        takes: all rollouts, those of one prompt in order.

    Source: Lightning OPD, arXiv 2604.13010.
    """

    def __init__(self, takes: Sequence[_Take]) -> None:
        self.takes: dict[str, list[_Take]] = {}
        for take in takes:
            self.takes.setdefault(take.rollout.prompt.id, []).append(take)

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Rollout]:
        """The recorded rollouts of these prompts: the n-th repeat of a prompt gets its n-th rollout, cyclically."""
        seen: dict[str, int] = {}
        played = []
        for prompt in prompts:
            takes, number = self.takes[prompt.id], seen.get(prompt.id, 0)
            seen[prompt.id] = number + 1
            played.append(takes[number % len(takes)].rollout)
        return played

    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        """The spans that the teacher scored when the rollouts were recorded; no hint or feedback is made again."""
        return [
            Segment(index, rollout.prompt_ids + rollout.completion_ids[: span.start], span)
            for index, rollout in enumerate(rollouts)
            for span in runs([not math.isnan(x) for x in self._take(rollout).teacher_logprobs])
        ]

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> SampledSignal | TopKSignal:
        """What was recorded at every scored position of the segments."""
        table: list[tuple[float, ...]] = []
        likeliest: list[Likeliest] = []
        for segment in segments:
            rollout, take = rollouts[segment.rollout], self._take(rollouts[segment.rollout])
            scored = [p for p in range(*segment.span) if not math.isnan(take.teacher_logprobs[p])]
            table += [
                (segment.rollout, p, rollout.completion_ids[p], take.teacher_logprobs[p], rollout.logprobs[p])
                for p in scored
            ]
            likeliest += [take.likeliest[p] for p in scored if take.likeliest]
        columns = torch.tensor(table, dtype=torch.float64).reshape(-1, 5).unbind(1)
        rollout_T, position_T, token_T = (column.long() for column in columns[:3])
        where = rollout_T, position_T, token_T, columns[3].float()
        if likeliest:
            ids_TK, logprobs_TK, rest_T = map(torch.tensor, zip(*likeliest, strict=True))
            return TopKSignal(*where, ids_TK, logprobs_TK, rest_T)
        return SampledSignal(*where, columns[4].float(), torch.zeros(len(table)))

    def _take(self, rollout: Rollout) -> _Take:
        return next(take for take in self.takes[rollout.prompt.id] if take.rollout is rollout)


def scorer(term: Term) -> SampledTeacher | TopKTeacher:
    """The teacher of a term, reduced to what a recording holds."""
    if isinstance(term.teacher, SampledTeacher):
        return term.teacher
    assert isinstance(term.teacher, LocalTeacher)
    assert isinstance(term.objective, FullVocabulary)
    assert term.objective.support
    return TopKTeacher(term.teacher, term.objective.support.k, temperature=term.objective.temperature)


def record(
    source: RolloutSource,
    teacher: SampledTeacher | TopKTeacher,
    view: View,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    batch: int,
    seed: int,
) -> list[_Take]:
    """Roll out every prompt ``samples`` times and score the rollouts, ``batch`` prompts at a time."""
    takes = []
    for number, start in enumerate(range(0, len(prompts), batch)):
        asked = [p for p in prompts[start : start + batch] for _ in range(samples)]
        rollouts = source.rollout(asked, seed * 1_000_003 + number, ALL_TURNS)
        signal = teacher.score(rollouts, view.segments(rollouts))
        teacher_logprobs = [[math.nan] * len(r.completion_ids) for r in rollouts]
        likeliest: list[dict[int, Likeliest]] = [{} for _ in rollouts]
        where = list(zip(signal.rollout_T.tolist(), signal.position_T.tolist(), strict=True))
        for (index, position), logprob in zip(where, signal.teacher_logprobs_T.tolist(), strict=True):
            teacher_logprobs[index][position] = logprob
        if isinstance(signal, TopKSignal):
            best = zip(signal.id_TK.tolist(), signal.logprob_TK.tolist(), signal.rest_logprob_T.tolist(), strict=True)
            for (index, position), (ids, logprobs, rest) in zip(where, best, strict=True):
                likeliest[index][position] = Likeliest(tuple(ids), tuple(logprobs), rest)
        takes += [_Take(r, tuple(s), b) for r, s, b in zip(rollouts, teacher_logprobs, likeliest, strict=True)]
    return takes


def save(takes: Sequence[_Take], path: Path) -> None:
    """Write one line per rollout; the file appears only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text("".join(json.dumps(_row(take)) + "\n" for take in takes))
    partial.replace(path)


def load(path: Path, prompts: Sequence[Prompt]) -> list[_Take]:
    """Read the file that ``save`` wrote; events and transcripts are not in it.

    Raises:
        CheckpointError: a line is broken, or its prompt is not one of the run's.
    """
    known = {prompt.id: prompt for prompt in prompts}
    takes = []
    for number, line in lines(path):
        try:
            row = parse(line)
            takes.append(_take(row, known[row["prompt"]]))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"line {number} of '{path}' is broken or about another run's prompt ({error}). Fix: delete the "
                "file and the run, and start again"
            ) from None
    return takes


def _row(take: _Take) -> dict[str, Any]:
    rollout = take.rollout
    return {
        "prompt": rollout.prompt.id,
        "prompt_ids": rollout.prompt_ids,
        "completion_ids": rollout.completion_ids,
        "completion_mask": rollout.completion_mask,
        "logprobs": [None if math.isnan(x) else x for x in rollout.logprobs],
        "teacher_logprobs": [None if math.isnan(x) else x for x in take.teacher_logprobs],
        "likeliest": take.likeliest,
        "turns": rollout.turns,
        "finish": rollout.finish,
        "reward": rollout.reward,
        "correct": rollout.correct,
        "rewards": rollout.rewards,
    }


def _take(row: dict[str, Any], prompt: Prompt) -> _Take:
    rollout = Rollout(
        prompt=prompt,
        prompt_ids=tuple(row["prompt_ids"]),
        completion_ids=tuple(row["completion_ids"]),
        completion_mask=tuple(row["completion_mask"]),
        logprobs=_numbers(row["logprobs"]),
        turns=tuple(Span(*turn) for turn in row["turns"]),
        finish=row["finish"],
        reward=row["reward"],
        correct=row.get("correct"),
        rewards=row.get("rewards", {}),
    )
    likeliest = {int(p): Likeliest(tuple(i), tuple(x), rest) for p, (i, x, rest) in row.get("likeliest", {}).items()}
    return _Take(rollout, _numbers(row["teacher_logprobs"]), likeliest)


def _numbers(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if x is None else x for x in values)
