"""Recording of rollouts token by token: a line per rollout in ``rollouts.jsonl``, written during training.

Each evaluation records the preview, rolled out and scored with the current weights, and a few rollouts of the training
step that follows, which uses the same weights. Recording does not change a run: sampling has its own generator, and
weights and state stay untouched.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opd.distributed import World, is_divided
from opd.evaluation.evaluate import MAX_TOKENS, SEED
from opd.loop import Loop
from opd.losses import token_logprobs
from opd.losses.objectives import per_token_losses
from opd.models.copies import frozen_copy
from opd.models.forward import Reading, align, collect, own_reading
from opd.models.language import LanguageModel
from opd.output.callbacks import RunStart
from opd.output.run_log import rewind
from opd.report.files import read_rollouts
from opd.report.measure import Scores, scores_of, teacher_scores
from opd.report.page import said_if_not_written, write_report
from opd.report.preview import Preview, varied_rollouts
from opd.report.texts import Texts, difference
from opd.signals import TokenStates
from opd.types import Metrics, Rollout, Scored, Signal

MAX_COPY = 100_000_000
"""Largest number of parameters for which a copy of the initial weights stays in memory to score later rollouts."""


@dataclass
class Recorder:
    """Records rollouts and scores of a run; a display and an observer of the run's log.

    Args:
        loop: the run's loop. Of several processes the first one writes, and records rollouts of its own share.
        student: the student, still with its initial weights.
        preview: prompts to roll out at every evaluation.
        path: path of ``rollouts.jsonl``.
        top_k: number of likeliest tokens to record per position.
    """

    loop: Loop
    student: LanguageModel
    preview: Preview
    path: Path
    top_k: int
    seconds: float = 0.0
    """Time spent on recording."""
    initial: LanguageModel | None = None
    texts: Texts = field(init=False)
    foreign: Texts | None = field(init=False)
    writes: bool = field(init=False)

    def __post_init__(self) -> None:
        self.texts = Texts(self.student.tokenizer)
        self.foreign = Texts(self.preview.foreign) if self.preview.foreign else None
        self.writes = self.loop.world.rank == 0
        divided = is_divided(self.student.model)  # such a model cannot be copied
        if self.writes and not divided and sum(p.numel() for p in self.student.model.parameters()) <= MAX_COPY:
            self.initial = frozen_copy(self.student)

    def start(self, run: RunStart) -> None:
        """Delete lines after the step that the run resumes from."""
        if self.writes:
            rewind(self.path, run.step if self.loop.state.before or run.step else -1)
        if self.loop.evaluate is None and run.step == 0:
            self._snapshot(0)

    def scored(self, step: int, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> None:
        """Record a training batch before its update."""
        if step % self.loop.evaluate_every == 0:
            started = time.perf_counter()
            own = sorted(self.loop.world.own(rollouts))
            chosen = [own[n] for n in varied_rollouts([rollouts[i] for i in own], self.preview.number)]
            self._write(step, "train", rollouts, scored, chosen, again=False)
            self.seconds += time.perf_counter() - started

    def step(self, step: int, metrics: Metrics) -> None:
        """Record the preview of training prompts if the run has no evaluation."""
        due = step % self.loop.evaluate_every == 0 or step == self.loop.steps
        if self.loop.evaluate is None and due and self.loop.optimizer.finite():
            self._snapshot(step)

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """Record the preview with the weights of this evaluation."""
        self._snapshot(step)

    def event(self, step: int, kind: str, text: str) -> None: ...

    def stop(self) -> None:
        """Write the page at the end of the run. A full disk or a missing folder must not hide why it ended."""
        started = time.perf_counter()
        with said_if_not_written(self.loop):
            if self.writes:
                write_report(self.path.parent)
        self.seconds += time.perf_counter() - started

    def finish(self) -> None:
        """Score all recorded rollouts with the final weights."""
        started = time.perf_counter()
        rows = [row for row in self._rows() if row["of"] in ("eval", "train")]
        for row, logprobs in zip(rows, self._logprobs(self.student, rows), strict=True):
            about = [row["step"], row["of"], row["n"]]
            self._append({"step": self.loop.state.step, "of": "after", "about": about, "logprob": logprobs})
        self.seconds += time.perf_counter() - started

    def _snapshot(self, step: int) -> None:
        """Roll out and score the preview, and score the preview of step 0 with the current weights."""
        started = time.perf_counter()
        rollouts = self.preview.sampler.rollout(self.preview.prompts, SEED)
        whole = dataclasses.replace(self.loop, world=World())  # the preview is scored in one piece
        scored = whole.score(rollouts) if self.preview.scores else []
        self._write(step, "eval", rollouts, scored, range(0, len(rollouts), self.preview.repeats), again=True)
        if step:
            first = [row for row in self._rows() if row["of"] == "eval" and row["step"] == 0]
            for row, logprobs in zip(first, self._logprobs(self.student, first), strict=True):
                self._append({"step": step, "of": "again", "about": [0, "eval", row["n"]], "logprob": logprobs})
        self.seconds += time.perf_counter() - started

    def _write(
        self,
        step: int,
        of: str,
        rollouts: Sequence[Rollout],
        scored: Sequence[Scored],
        chosen: Sequence[int],
        *,
        again: bool,
    ) -> None:
        """Write a line for each chosen rollout of a batch that was scored as a whole."""
        lines = {}
        positions = {i: [p for p, own in enumerate(rollouts[i].completion_mask) if own] for i in chosen}
        readings = [own_reading(rollouts, i, wanted) for i, wanted in positions.items() if wanted]
        where, states = collect(self.student, readings, max_tokens=MAX_TOKENS, layers=self.preview.layers)
        own = scores_of(states.hidden_TD, states.head_VD, where.token_T, self.top_k)
        for number, i in enumerate(chosen):
            here = (where.rollout_T == i).cpu()
            lines[i] = {"step": step, "of": of, "n": number, **self._rollout(rollouts[i])}
            lines[i]["student"] = self._line(own, here)
            lines[i]["terms"] = []
        for one in scored:
            for i, term in self._term(one, rollouts, chosen, where, states, again):
                lines[i]["terms"].append(term)
        before = self._logprobs(self.initial, list(lines.values())) if self.initial else []
        for line, logprobs in zip_longest(lines.values(), before):
            line["student"]["before"] = logprobs
            self._append(line)

    def _term(
        self,
        scored: Scored,
        rollouts: Sequence[Rollout],
        chosen: Sequence[int],
        where: Signal,
        states: TokenStates,
        again: bool,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """One loss term's weights, losses and teachers at the positions of each chosen rollout."""
        signal = scored.signal
        rows = torch.isin(signal.rollout_T, torch.tensor(list(chosen), device=signal.rollout_T.device)).nonzero()[:, 0]
        kept = signal.take(rows)
        loss_T = torch.zeros(0)
        teachers: list[Scores] = []
        if len(kept):
            student = states.take(align(rollouts, where, kept))
            loss_T = per_token_losses(scored.term.objective, student, kept).cpu()
            teachers = teacher_scores(scored, rollouts, rows, top_k=self.top_k, again=again)
        count = max(len(signal), 1)
        weight_T, advantage_T = (scored.weight_T[rows] * count).cpu(), getattr(kept, "advantage_T", None)
        for i in chosen:
            here = (kept.rollout_T == i).cpu()
            yield (
                i,
                {
                    "name": scored.term.name,
                    "role": scored.term.role,
                    "factor": scored.term.weight,
                    "count": len(signal),
                    "position": kept.position_T.cpu()[here].tolist(),
                    "weight": rounded(weight_T[here]),
                    "loss": rounded(loss_T[here]),
                    **({"advantage": rounded(advantage_T.cpu()[here])} if advantage_T is not None else {}),
                    "teachers": [self._line(one, here) for one in teachers if here[one.position_T].any()],
                    "contexts": list(self._contexts(scored, rollouts[i], i)),
                },
            )

    def _line(self, scores: Scores, here: Tensor) -> dict[str, Any]:
        """A model's scores at the positions of one rollout; ``row`` counts these positions."""
        rank_T = here.cumsum(0) - 1
        rows = here[scores.position_T]
        line: dict[str, Any] = {"name": scores.name} if scores.name else {}
        if len(scores.position_T) < len(here):
            line["row"] = rank_T[scores.position_T[rows]].tolist()
        line["logprob"] = rounded(scores.logprob_T[rows])
        if scores.entropy_T is not None:
            line["entropy"] = rounded(scores.entropy_T[rows])
        if scores.top_id_TK is not None and scores.top_logprob_TK is not None:
            ids, texts = scores.top_id_TK[rows].tolist(), (self.foreign if scores.foreign else None) or self.texts
            line["top"] = [[texts.one(token) for token in row] for row in ids]
            line["top_id"] = ids
            line["top_logprob"] = [rounded(row) for row in scores.top_logprob_TK[rows]]
        return line

    def _rollout(self, rollout: Rollout) -> dict[str, Any]:
        texts, parts = self.texts.each(rollout.completion_ids)
        return {
            "prompt": rollout.prompt.id,
            "domain": rollout.prompt.domain,
            "answer": rollout.prompt.answer,
            "prompt_text": self.texts.whole(rollout.prompt_ids),
            "prompt_ids": rollout.prompt_ids,
            "messages": rollout.prompt.messages,
            "tools": rollout.prompt.tools,
            "marks": sorted({self.texts.one(token) for token in rollout.prompt_ids if token in self.texts.special}),
            "ids": rollout.completion_ids,
            "text": texts,
            "bytes": parts,
            "own": [p for p, own in enumerate(rollout.completion_mask) if own],
            "drawn": [
                None if math.isnan(x) else round(x, 5) for x in compress(rollout.logprobs, rollout.completion_mask)
            ],
            "missed": [p for p, x in enumerate(rollout.logprobs) if not (math.isnan(x) or rollout.completion_mask[p])],
            "special": [p for p, token in enumerate(rollout.completion_ids) if token in self.texts.special],
            "turns": rollout.turns,
            "events": [{"kind": e.kind, "span": e.span, "detail": dict(e.detail)} for e in rollout.events],
            "reward": rollout.reward,
            "correct": rollout.correct,
            "finish": rollout.finish,
            "source": rollout.source,
        }

    def _contexts(self, scored: Scored, rollout: Rollout, index: int) -> Iterator[dict[str, Any]]:
        """Text that is in the teacher's input and not in the student's."""
        for segment in scored.segments:
            if segment.rollout != index:
                continue
            own = rollout.prompt_ids + rollout.completion_ids[: segment.span.start]
            a, b, c = difference(segment.context_ids, own)
            if b > a or c > a:
                shown, replaced = segment.context_ids[a:b], own[a:c]
                before = a - len(rollout.prompt_ids)
                yield {
                    "span": segment.span,
                    "at": before if before >= 0 else None,
                    "read": self.texts.texts.decode(shown).strip(),
                    "instead_of": self.texts.texts.decode(replaced).strip(),
                }

    def _logprobs(self, model: LanguageModel, rows: Sequence[dict[str, Any]]) -> list[list[float]]:
        """A model's log-probability of each student token of some lines."""
        readings = [
            Reading(i, (*row["prompt_ids"], *row["ids"][: max(row["own"]) + 1]), len(row["prompt_ids"]), row["own"])
            for i, row in enumerate(rows)
            if row["own"]
        ]
        where, states = collect(model, readings, max_tokens=MAX_TOKENS)
        logprob_T = token_logprobs(states.hidden_TD, model.head_VD.detach().to(states.hidden_TD), where.token_T).cpu()
        return [rounded(logprob_T[(where.rollout_T == i).cpu()]) for i in range(len(rows))]

    def _append(self, row: dict[str, Any]) -> None:
        if self.writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=_plain) + "\n")

    def _rows(self) -> Sequence[dict[str, Any]]:
        """What this process has written."""
        return list(read_rollouts(self.path)) if self.writes else []


def rounded(values: Tensor) -> list[float]:
    """Values with five decimals; NaN becomes 0 and infinities ±1e9, because JSON has neither."""
    return [round(x, 5) for x in values.float().nan_to_num(0.0, 1e9, -1e9).tolist()]


def _plain(value: Any) -> Any:
    """A user's own mapping or object in a message as JSON."""
    return dict(value) if isinstance(value, Mapping) else str(value)
