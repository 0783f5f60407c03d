"""What a run keeps of single tokens: a line per rollout in ``rollouts.jsonl``, written as the run goes.

Each evaluation looks at the same handful of held-out prompts, rolled out and scored anew, and at a few rollouts of the
training step that follows, which is made of the same weights. Nothing here changes a run: draws have a generator of
their own, and no weight and no state is touched.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import compress, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opd.evaluation.evaluate import MAX_TOKENS, SEED
from opd.evaluation.metrics import Metrics
from opd.loop import Loop, Scored
from opd.losses import token_logprobs
from opd.losses.objectives import per_token_losses
from opd.models.copies import frozen_copy
from opd.models.forward import Reading, align, collect, own_reading
from opd.models.language import LanguageModel
from opd.output.run_log import rewind
from opd.report.look import Look, telling
from opd.report.measure import Opinion, opinion, opinions
from opd.report.page import write_report
from opd.report.rows import read_rows
from opd.report.texts import Texts, difference
from opd.types import Rollout, Signal, TokenStates

HELD = 100_000_000
"""Parameters up to which the initial weights are kept in memory, to see what they thought of later rollouts."""


@dataclass
class Recorder:
    """Watches a run and writes down what its teachers say; a display and an observer of the run's log.

    Args:
        loop: the run.
        student: what it trains, still with its initial weights.
        look: which prompts to look at, and how to roll them out.
        path: of ``rollouts.jsonl``.
        top_k: likeliest tokens kept at every position.
        vocab_size: rows of the heads that count; None for all.
    """

    loop: Loop
    student: LanguageModel
    look: Look
    path: Path
    top_k: int
    vocab_size: int | None = None
    seconds: float = 0.0
    """What the recording itself has taken."""
    initial: LanguageModel | None = None
    texts: Texts = field(init=False)
    foreign: Texts | None = field(init=False)

    def __post_init__(self) -> None:
        self.texts = Texts(self.student.tokenizer)
        self.foreign = Texts(self.look.foreign) if self.look.foreign else None
        if sum(p.numel() for p in self.student.model.parameters()) <= HELD:
            self.initial = frozen_copy(self.student)

    def start(self, loop: Loop) -> None:
        """Forget what was written after the step that the run goes on from."""
        rewind(self.path, loop.state.step if loop.state.before or loop.state.step else -1)
        if loop.evaluate is None and loop.state.step == 0:
            self._snapshot(0)

    def scored(self, step: int, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> None:
        """A training batch, before its update."""
        if step % self.loop.evaluate_every == 0:
            started = time.perf_counter()
            self._write(step, "train", rollouts, scored, telling(rollouts, self.look.number), again=False)
            self.seconds += time.perf_counter() - started

    def step(self, step: int, metrics: Metrics) -> None:
        """Without held-out prompts nothing is evaluated; the report looks at its training prompts all the same."""
        due = step % self.loop.evaluate_every == 0 or step == self.loop.steps
        if self.loop.evaluate is None and due and self.loop.optimizer.finite():
            self._snapshot(step)

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """Look at the handful of prompts with the weights that were just measured."""
        self._snapshot(step)

    def event(self, step: int, kind: str, text: str) -> None: ...

    def stop(self) -> None:
        """The run is over, well or badly: leave the page. A disk that is full must not hide why a run ended."""
        started = time.perf_counter()
        with suppress(OSError):
            write_report(self.path.parent)
        self.seconds += time.perf_counter() - started

    def finish(self) -> None:
        """Ask the weights that stay what they think of all rollouts that were kept."""
        started = time.perf_counter()
        rows = [row for row in read_rows(self.path) if row["of"] in ("eval", "train")]
        logprobs = self._thinks(self.student, rows)
        for row, said in zip(rows, logprobs, strict=True):
            about = [row["step"], row["of"], row["n"]]
            self._append({"step": self.loop.state.step, "of": "after", "about": about, "logprob": said})
        self.seconds += time.perf_counter() - started

    def _snapshot(self, step: int) -> None:
        """Roll out the handful, score it as the loss would, and ask again about the first answers."""
        started = time.perf_counter()
        rollouts = self.look.sampler.rollout(self.look.prompts, SEED)
        scored = self.loop.score(rollouts) if self.look.teaches else []
        self._write(step, "eval", rollouts, scored, range(0, len(rollouts), self.look.repeats), again=True)
        if step:
            first = [row for row in read_rows(self.path) if row["of"] == "eval" and row["step"] == 0]
            for row, said in zip(first, self._thinks(self.student, first), strict=True):
                self._append({"step": step, "of": "again", "about": [0, "eval", row["n"]], "logprob": said})
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
        """A line for each chosen rollout of a batch that was scored as a whole."""
        lines = {}
        mine = {i: [p for p, own in enumerate(rollouts[i].completion_mask) if own] for i in chosen}
        readings = [own_reading(rollouts, i, wanted) for i, wanted in mine.items() if wanted]
        where, states = collect(self.student, readings, max_tokens=MAX_TOKENS, layers=self.look.layers)
        own = opinion(states.hidden_TD, states.head_VD, where.token_T, self.top_k, vocab_size=self.vocab_size)
        for number, i in enumerate(chosen):
            here = (where.rollout_T == i).cpu()
            lines[i] = {"step": step, "of": of, "n": number, **self._rollout(rollouts[i])}
            lines[i]["student"] = self._said(own, here)
            lines[i]["terms"] = []
        for said in scored:
            for i, term in self._term(said, rollouts, chosen, where, states, again):
                lines[i]["terms"].append(term)
        before = self._thinks(self.initial, list(lines.values())) if self.initial else []
        for line, thought in zip_longest(lines.values(), before):
            line["student"]["before"] = thought
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
        """What one term of the loss has to say about each chosen rollout."""
        signal = scored.signal
        rows = torch.isin(signal.rollout_T, torch.tensor(list(chosen), device=signal.rollout_T.device)).nonzero()[:, 0]
        kept = signal.take(rows)
        loss_T = torch.zeros(0)
        teachers: list[Opinion] = []
        if len(kept):
            student = states.take(align(rollouts, where, kept))
            loss_T = per_token_losses(scored.term.objective, student, kept).cpu()
            teachers = opinions(scored, rollouts, rows, top_k=self.top_k, vocab_size=self.vocab_size, again=again)
        count = max(len(signal), 1)
        weight_T, advantage_T = (scored.weight_T[rows] * count).cpu(), getattr(kept, "advantage_T", None)
        for i in chosen:
            here = (kept.rollout_T == i).cpu()
            yield (
                i,
                {
                    "name": scored.term.name,
                    "factor": scored.term.weight,
                    "count": len(signal),
                    "position": kept.position_T.cpu()[here].tolist(),
                    "weight": rounded(weight_T[here]),
                    "loss": rounded(loss_T[here]),
                    **({"advantage": rounded(advantage_T.cpu()[here])} if advantage_T is not None else {}),
                    "teachers": [self._said(said, here) for said in teachers if here[said.position_T].any()],
                    "contexts": list(self._contexts(scored, rollouts[i], i)),
                },
            )

    def _said(self, said: Opinion, here: Tensor) -> dict[str, Any]:
        """An opinion about the positions of one rollout; ``row`` counts among that rollout's."""
        rank_T = here.cumsum(0) - 1
        rows = here[said.position_T]
        line: dict[str, Any] = {"name": said.name} if said.name else {}
        if len(said.position_T) < len(here):
            line["row"] = rank_T[said.position_T[rows]].tolist()
        line["logprob"] = rounded(said.logprob_T[rows])
        if said.entropy_T is not None:
            line["entropy"] = rounded(said.entropy_T[rows])
        if said.top_id_TK is not None and said.top_logprob_TK is not None:
            ids, texts = said.top_id_TK[rows].tolist(), (self.foreign if said.foreign else None) or self.texts
            line["top"] = [[texts.one(token) for token in row] for row in ids]
            line["top_id"] = ids
            line["top_logprob"] = [rounded(row) for row in said.top_logprob_TK[rows]]
        return line

    def _rollout(self, rollout: Rollout) -> dict[str, Any]:
        return {
            "prompt": rollout.prompt.id,
            "domain": rollout.prompt.domain,
            "answer": rollout.prompt.answer,
            "prompt_text": self.texts.whole(rollout.prompt_ids),
            "prompt_ids": rollout.prompt_ids,
            "marks": sorted({self.texts.one(token) for token in rollout.prompt_ids if token in self.texts.special}),
            "ids": rollout.completion_ids,
            "text": self.texts.each(rollout.completion_ids),
            "own": [p for p, own in enumerate(rollout.completion_mask) if own],
            "drawn": [
                None if math.isnan(x) else round(x, 5) for x in compress(rollout.logprobs, rollout.completion_mask)
            ],
            "missed": [p for p, x in enumerate(rollout.logprobs) if not (math.isnan(x) or rollout.completion_mask[p])],
            "special": [p for p, token in enumerate(rollout.completion_ids) if token in self.texts.special],
            "turns": rollout.turns,
            "events": [{"kind": e.kind, "span": e.span, "detail": dict(e.detail)} for e in rollout.events],
            "reward": rollout.reward,
            "finish": rollout.finish,
            "source": rollout.source,
        }

    def _contexts(self, scored: Scored, rollout: Rollout, index: int) -> Iterator[dict[str, Any]]:
        """What the teacher read that the student did not."""
        for segment in scored.segments:
            if segment.rollout != index:
                continue
            own = rollout.prompt_ids + rollout.completion_ids[: segment.span.start]
            a, b, c = difference(segment.context_ids, own)
            if b > a or c > a:
                read, instead = segment.context_ids[a:b], own[a:c]
                before = a - len(rollout.prompt_ids)
                yield {
                    "span": segment.span,
                    "at": before if before >= 0 else None,
                    "read": self.texts.texts.decode(read).strip(),
                    "instead_of": self.texts.texts.decode(instead).strip(),
                }

    def _thinks(self, model: LanguageModel, rows: Sequence[dict[str, Any]]) -> list[list[float]]:
        """A model's log-probability of each of the student's own tokens of some lines."""
        readings = [
            Reading(i, (*row["prompt_ids"], *row["ids"][: max(row["own"]) + 1]), len(row["prompt_ids"]), row["own"])
            for i, row in enumerate(rows)
            if row["own"]
        ]
        where, states = collect(model, readings, max_tokens=MAX_TOKENS)
        logprob_T = token_logprobs(states.hidden_TD, model.head_VD.detach().to(states.hidden_TD), where.token_T).cpu()
        return [rounded(logprob_T[(where.rollout_T == i).cpu()]) for i in range(len(rows))]

    def _append(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


def rounded(values: Tensor) -> list[float]:
    """Five decimals; what is not finite becomes a number that JSON has."""
    return [round(x, 5) for x in values.float().nan_to_num(0.0, 1e9, -1e9).tolist()]
