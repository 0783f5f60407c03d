"""THE loop. Every method passes through it; what differs between methods is what it is given.

rollouts = the student answers the prompts itself
signals  = teachers score those same tokens
loss     = a divergence between the two, where it matters
update   = one optimizer step, watched by guards
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from opd.data.curriculum import Curriculum
from opd.errors import EmptyStepError
from opd.evaluation.metrics import Metrics, describe, gap_recovery
from opd.evaluation.teacher_gate import Gate
from opd.experimental.extrapolation import Extrapolation
from opd.models.copies import EmaWeights
from opd.models.forward import align
from opd.output.run_log import Log
from opd.teachers.views import remaining
from opd.training.checkpoint import Checkpoints
from opd.training.guards import Guards
from opd.training.optimizer import Optimizer
from opd.training.recovery import Recovery
from opd.training.state import State
from opd.types import Policy, Reader, Rollout, RolloutSource, Segment, Signal, States, Teacher, View


class Objective(Protocol):
    """How far the student is from a signal, and which way is nearer."""

    def __call__(self, student: States, signal: Signal, weight_T: Tensor, per_token_T: Tensor | None = None) -> Tensor:
        """The weighted sum over positions, float32 []; gradients flow to the student's states.

        ``per_token_T``, float32 [T], is filled with each position's own loss, detached, where there is such a thing.
        """
        ...


@dataclass(frozen=True)
class Term:
    """One summand of the loss: who teaches, what it sees, how the distance is measured and what it weighs.

    A view of None reads every student token that no earlier term reads. A term of weight 0 waits for a rollback.
    """

    name: str
    teacher: Teacher
    view: View | None
    objective: Objective
    weight: float = 1.0
    positions: Callable[[Sequence[Rollout], Signal], Tensor] | None = None
    """Weights of the signal's positions, [T]; None counts all of them alike."""
    by_luck: bool = False
    """A first batch without a signal is no mistake in the run file: its rewards may happen to be equal."""


@dataclass(frozen=True)
class Scored:
    """What a term's teacher said about a batch: the segments it read, and its signal where that counts."""

    term: Term
    segments: Sequence[Segment]
    signal: Signal
    weight_T: Tensor
    loss_T: Tensor
    """Each position's own loss, once the update has been made; NaN where there is no such thing."""


@dataclass
class Loop:
    """The parts of one run, put together by ``opd.build``; ``run`` trains."""

    student: Policy
    sampler: RolloutSource
    reader: Reader
    """How the student reads its own rollouts, with gradients, a micro-batch after the other."""
    curriculum: Curriculum
    terms: Sequence[Term]
    optimizer: Optimizer
    guards: Guards
    checkpoints: Checkpoints
    log: Log
    steps: int
    seed: int = 0
    describe: Callable[[Sequence[Rollout]], Metrics] = describe
    """What can be said about the student's own rollouts without any model."""
    average: EmaWeights | None = None
    gate: Gate | None = None
    evaluate: Callable[[], Metrics] | None = None
    evaluate_every: int = 20
    recovery: Recovery | None = None
    extrapolation: Extrapolation | None = None
    state: State = field(default_factory=State)

    def run(self) -> State:
        """Train from ``state.step`` to ``steps``, or until a guard stops the run and no recovery takes it up.

        Raises:
            EmptyStepError: a step has no tokens, or no teacher has anything to say from the first step on.
        """
        state = self.state
        if not state.before:
            self._evaluate(last=False)
        if self.recovery and not state.step:
            self.checkpoints.save(self, last=True)  # something to go back to
        while state.step < self.steps and state.stopped_by is None:
            started = time.perf_counter()
            metrics = self._step(state.step)
            state.step += 1
            self.log.step(state.step, metrics)
            if self.recovery:
                self.recovery.look(self, metrics)
            if self.extrapolation:
                self.extrapolation(self)
            state.seconds += time.perf_counter() - started
            last = state.step == self.steps or state.stopped_by is not None
            if last or state.step % self.evaluate_every == 0:
                self._evaluate(last=last)
            self.checkpoints.save(self, last=last or state.stopped_by is not None)
        if state.signal_tokens == 0:
            raise EmptyStepError(
                f"the run ended at step {state.step} without a target for a single token; where rewards teach, all "
                "were equal in every group: take prompts that some answers get right, or more rollout.samples"
            )
        return state

    @property
    def active(self) -> list[Term]:
        """The terms that count, with what rollbacks have made of their weights."""
        weighted = [replace(t, weight=self.state.weights.get(t.name, t.weight)) for t in self.terms]
        return [term for term in weighted if term.weight]

    def _step(self, step: int) -> Metrics:
        """Rollouts, signals, loss, update."""
        times: Metrics = {}
        with _timed(times, "rollout_s"):
            seed = self.seed * 1_000_003 + step
            rollouts = self.sampler.rollout(self.curriculum.step(step), seed, step)
        if not sum(r.num_tokens for r in rollouts):
            raise EmptyStepError(
                f"step {step}: not one of {len(rollouts)} rollouts has a token of the student's own; "
                "check rollout.max_new_tokens and the stop token"
            )
        with _timed(times, "teacher_s"):
            scored = self.score(rollouts)
        if step == 0 and not len(scored[0].signal) and not self.terms[0].by_luck:
            raise EmptyStepError(
                f"the first step's rollouts got no target for '{self.terms[0].name}': no hint was written, or "
                "every span is empty; check teacher.view"
            )
        # An anchor holds the student where it was, and teaches it nothing.
        self.state.signal_tokens += sum(len(s.signal) for s in scored if s.term.name != "anchor")
        self.log.scored(step, rollouts, scored)
        with _timed(times, "update_s"):
            metrics = self._update(rollouts, scored)
        tokens = sum(r.num_tokens for r in rollouts)
        own = [r for r in rollouts if r.source == "student"]
        self.state.tokens += sum(r.num_tokens for r in own)
        share = {f"{s.term.name}_share": len(s.signal) / tokens for s in scored}
        return {
            **metrics,
            **share,
            **self.curriculum.learn(step, rollouts, scored[0].signal, scored[0].loss_T),
            **(self.describe(own) if own else {}),
            "tokens": float(tokens),
            **times,
        }

    def score(self, rollouts: Sequence[Rollout]) -> list[Scored]:
        """Each term's teacher reads what its view shows it; positions of no weight are left out at once."""
        taken: list[Segment] = []
        scored: list[Scored] = []
        for term in self.active:
            segments = term.view.segments(rollouts) if term.view else remaining(rollouts, taken)
            taken += segments
            signal = term.teacher.score(rollouts, segments).to(self.student.device)
            weight_T = torch.ones(len(signal), device=self.student.device)
            if term.positions:
                weight_T = term.positions(rollouts, signal)
            counts = weight_T > 0
            # The count is the whole batch's, so micro-batches add up to exactly one big batch.
            share_T = weight_T[counts] / counts.sum().clamp_min(1)
            scored.append(Scored(term, segments, signal.take(counts), share_T, torch.full_like(share_T, torch.nan)))
        return scored

    def _update(self, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> Metrics:
        """One optimizer step on the weighted mean over each term's tokens, micro-batch by micro-batch."""
        if not any(len(s.signal) for s in scored) or not self.state.signal_tokens:
            return self._idle()
        self.state.idle = 0
        scale = self.state.lr_scale
        sums = dict.fromkeys((s.term.name for s in scored), 0.0)
        self.student.model.train()
        for where, states in self.reader(rollouts):
            losses: list[Tensor] = []
            for said in scored:
                term, chosen = said.term, torch.isin(said.signal.rollout_T, where.rollout_T)
                here = said.signal.take(chosen)
                if not len(here):
                    continue
                row_T, loss_T = align(rollouts, where, here), torch.full_like(said.loss_T[chosen], torch.nan)
                loss = term.objective(states.take(row_T), here, said.weight_T[chosen], loss_T)
                said.loss_T[chosen] = loss_T
                sums[term.name] += loss.item()
                losses.append(term.weight * loss)
            if losses:
                torch.stack(losses).sum().backward()
        total = sum(s.term.weight * sums[s.term.name] for s in scored)
        norm = self.optimizer.step(self.state.step, total, scale=scale)
        if norm is None:
            self._skip(total)
        else:
            self.state.skipped = 0
            if self.average and not self.state.rollbacks:
                self.average.update()
        figures = {"loss": total, **sums, "lr": scale * self.optimizer.lr(self.state.step)}
        return figures | ({"grad_norm": norm} if norm is not None else {})

    def _idle(self) -> Metrics:
        """No teacher has anything to say; when that lasts, what can be learned is learned, or nothing ever can."""
        self.state.idle += 1
        self.event("idle", "no teacher had anything to say about this step's rollouts; no update was made")
        if self.guards.idle(self.state.idle):
            self.stop("idle", f"no teacher had anything to say for {self.state.idle} steps in a row")
        return {}

    def _skip(self, loss: float) -> None:
        """A loss or gradient that is not finite never reaches the weights."""
        self.state.skipped += 1
        what = "loss" if not math.isfinite(loss) else "gradient"
        self.event("non_finite", f"the {what} is not finite; the update was left out")
        if not self.optimizer.finite():
            self.stop("non_finite", "weights of the student are not finite")
        elif self.guards.skipped(self.state.skipped):
            self.stop("non_finite", f"the {what} was not finite for {self.state.skipped} steps in a row")

    def _evaluate(self, *, last: bool) -> None:
        """Measure the student on held-out prompts, remember the best, and let the guards look.

        A collapse stops the run when it lasts; at the end of a run there is no more waiting.
        """
        state = self.state
        metrics = self.evaluate() if self.evaluate and self.optimizer.finite() else {}
        if not metrics:
            return
        metrics |= gap_recovery(state.before or metrics, metrics)
        if self.gate:
            state.refused, said = self.gate(metrics, state.refused if state.before else None)
            for text in said:
                self.event("gate", text)
        self.log.evaluation(state.step, metrics)
        state.after = metrics
        if not state.before:
            state.before = metrics
        if not state.best or self.guards.better(metrics, state.best):
            state.best, state.best_step = metrics, state.step
            self.checkpoints.save_best(self.student)
        seen = self.guards.collapsed(state.before, state.best, metrics)
        state.collapsing = state.collapsing + 1 if seen else 0
        if seen and (last or self.guards.lasting(state.collapsing)):
            self.stop("collapse", f"{seen}; the best weights, of step {state.best_step}, are kept")
        if self.recovery:
            self.recovery.evaluated(self)

    def event(self, kind: str, text: str) -> None:
        """Tell the log, and keep it for the result."""
        self.state.events.append({"step": self.state.step, "kind": kind, "text": text})
        self.log.event(self.state.step, kind, text)

    def stop(self, guard: str, text: str) -> None:
        """Let this step be the last, unless a recovery takes the run up again."""
        self.state.stopped_by = guard
        self.event(guard, text)


@contextmanager
def _timed(times: Metrics, key: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    times[key] = time.perf_counter() - started
