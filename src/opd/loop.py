"""The training loop. Every method runs through it; methods differ only in the objects it is given.

rollouts = the student, or another source, answers the prompts
signals  = teachers score those same tokens
loss     = the distance between student and signal, weighted by position
update   = one optimizer step, checked by guards
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from opd.data.curriculum import Curriculum
from opd.distributed import World
from opd.errors import EmptyStepError
from opd.evaluation.metrics import describe, gap_recovery
from opd.evaluation.teacher_gate import Gate
from opd.experimental.extrapolation import Extrapolation
from opd.losses.gpu import sent
from opd.models.copies import EmaWeights
from opd.models.forward import align, on_cpu
from opd.output.run_log import Log
from opd.teachers.views import remaining
from opd.training.actions import Action, RefreshTeacher, RollBack, Stop
from opd.training.checkpoint import Checkpoints
from opd.training.guards import Guards, better, validation
from opd.training.optimizer import Optimizer
from opd.training.recovery import Recovery
from opd.training.state import RunState, State, Stateful
from opd.types import ForwardPass, Metrics, Policy, Rollout, RolloutSource, Scored, Segment, Term


@dataclass
class Loop:
    """One run, trained by ``run``.

    No part holds the loop. Parts receive the state and return values or actions, and only the loop acts on them.

    Attributes:
        sampler: generates the rollouts of a step.
        forward: the student's forward pass over its rollouts, with gradients, one micro-batch after the other.
        terms: the loss terms. The first one is the main term, whose loss the curriculum learns from.
        describe: metrics of the student's rollouts that need no model.
        average: the averaged teacher, updated after each optimizer step.
        gate: excludes teachers that are no better than the student.
        ahead: rollouts of the next step that the sampler has asked for.
        evaluate: metrics on held-out prompts; None to measure nothing.
        world: the processes that share the run; each has its own part of the tokens.
    """

    student: Policy
    sampler: RolloutSource
    forward: ForwardPass
    curriculum: Curriculum
    terms: Sequence[Term]
    optimizer: Optimizer
    guards: Guards
    checkpoints: Checkpoints
    log: Log
    steps: int
    seed: int = 0
    describe: Callable[[Sequence[Rollout]], Metrics] = describe
    average: EmaWeights | None = None
    gate: Gate | None = None
    evaluate: Callable[[], Metrics] | None = None
    evaluate_every: int = 20
    recovery: Recovery | None = None
    extrapolation: Extrapolation | None = None
    ahead: Stateful | None = None
    state: State = field(default_factory=State)
    world: World = field(default_factory=World)

    def restore(self) -> None:
        """Continue from the newest whole checkpoint; without one nothing changes.

        Raises:
            CheckpointError: none is whole and fits the model.
        """
        saved = self.checkpoints.restore(self.run_state)
        if saved:
            self.state = saved
            if self.gate:
                self.gate.apply(saved.after, saved.refused)

    def run(self) -> State:
        """Train from ``state.step`` to ``steps``, or until a guard stops the run and no rollback resumes it.

        Raises:
            EmptyStepError: the rollouts of a step have no tokens, or no token of the run had a target.
        """
        state = self.state
        self._report_damage()
        if not state.before:
            self._evaluate()
        if self._watching and not state.step:
            self.checkpoints.save(self.run_state, last=True)  # the first one to roll back to
        while state.step < self.steps and state.stopped_by is None:
            started = time.perf_counter()
            metrics = self._step(state.step)
            state.step += 1
            self.log.step(state.step, metrics)
            if watching := self._watching:
                self._act(watching.after_step(state, metrics, self.terms))
                self._recover()
            if self.extrapolation and (found := self.extrapolation(state.step)):
                state.tokens += found.tokens
                self.event("extrapolation", found.text)
            state.seconds += time.perf_counter() - started
            if self._last or state.step % self.evaluate_every == 0:
                self._evaluate()
            self.checkpoints.save(self.run_state, last=self._last)
        if not state.taught:
            why = "; ".join(f"'{term.name}': {term.if_empty}" for term in self._without_target)
            raise EmptyStepError(f"the run ended at step {state.step} without a target for {why}")
        return state

    @property
    def active(self) -> list[Term]:
        """The terms with a weight above 0, which rollbacks may have changed."""
        weighted = [replace(t, weight=self.state.weights.get(t.name, t.weight)) for t in self.terms]
        return [term for term in weighted if term.weight]

    @property
    def run_state(self) -> RunState:
        """Everything a checkpoint holds."""
        curriculum = self.curriculum if self.curriculum.tensors() else None
        parts = {"optimizer": self.optimizer, "average": self.average, "curriculum": curriculum}
        return RunState(
            self.student.model, self.state, {**parts, "extrapolation": self.extrapolation, "ahead": self.ahead}
        )

    def _step(self, step: int) -> Metrics:
        """Rollouts, signals, loss, update."""
        times: Metrics = {}
        with _timed(times, "rollout_s"):
            rollouts = self.sampler.rollout(self.curriculum.step(step), self.seed * 1_000_003 + step, step)
        tokens = sum(r.num_tokens for r in rollouts)
        if not tokens:
            raise EmptyStepError(
                f"step {step}: none of {len(rollouts)} rollouts has a generated token. Fix: check "
                "rollout.max_new_tokens and the stop token"
            )
        with _timed(times, "teacher_s"):
            scored = self.score(rollouts)
        for entry in scored:
            if entry.term.role != "anchor":
                self.state.targets[entry.term.name] = self.state.targets.get(entry.term.name, 0) + entry.count
        if step + 1 == self.guards.max_idle and self.state.taught:
            for term in self._without_target:
                self.event("no_target", f"no token has had a target for '{term.name}' yet: {term.if_empty}")
        self.log.scored(step, rollouts, scored)
        with _timed(times, "update_s"):
            metrics = self._update(rollouts, scored)
        own = [r for r in rollouts if r.source == "student"]
        self.state.tokens += sum(r.num_tokens for r in own)
        return {
            **metrics,
            **{f"{s.term.name}_share": s.count / tokens for s in scored},
            **self.curriculum.learn(step, rollouts, *self.world.losses(scored[0])),
            **(self.describe(own) if own else {}),
            "tokens": float(tokens),
            **times,
        }

    def score(self, rollouts: Sequence[Rollout]) -> list[Scored]:
        """The signal of every active term, without the positions of weight 0."""
        taken: list[Segment] = []
        scored: list[Scored] = []
        for term in self.active:
            segments = term.view.segments(rollouts) if term.view else remaining(rollouts, taken)
            taken += segments
            signal = self.world.score(term, rollouts, segments).to(self.student.device)
            weight_T = torch.ones(len(signal), device=self.student.device)
            if term.token_weights:
                weight_T = term.token_weights(rollouts, signal)
            counts = weight_T > 0
            # The number of positions is the whole batch's, so micro-batches add up to exactly one big batch.
            count = self.world.total(counts.sum())
            share_T = weight_T[counts] / count.clamp_min(1)
            unknown_T = torch.full_like(share_T, torch.nan)
            scored.append(Scored(term, segments, signal.take(counts), share_T, unknown_T, int(count)))
        return scored

    def _update(self, rollouts: Sequence[Rollout], scored: Sequence[Scored]) -> Metrics:
        """One optimizer step on the weighted mean over each term's tokens, micro-batch by micro-batch."""
        if not self.state.taught or not any(s.count for s in scored):
            return self._idle()
        self.state.idle = 0
        scale = self.state.lr_scale
        values: dict[str, list[Tensor]] = {s.term.name: [] for s in scored}
        # Which positions belong to a micro-batch is found out on the CPU, so that no pass waits for a GPU.
        places = [on_cpu(entry.signal) for entry in scored]
        self.student.train()
        for there, states in self.forward(rollouts):
            where, losses = on_cpu(there), []
            for entry, place in zip(scored, places, strict=True):
                chosen = torch.isin(place.rollout_T, where.rollout_T).nonzero()[:, 0]
                if not len(chosen):
                    continue
                rows = torch.stack([align(rollouts, where, place.take(chosen)), chosen])
                row_T, chosen = sent(rows, entry.loss_T.device).unbind()
                loss_T, here = torch.full_like(entry.loss_T[chosen], torch.nan), entry.signal.take(chosen).arrived()
                loss = entry.term.objective(states.take(row_T), here, entry.weight_T[chosen], loss_T)
                entry.loss_T[chosen] = loss_T
                values[entry.term.name].append(loss.detach())
                losses.append(entry.term.weight * loss)
            if losses:
                torch.stack(losses).sum().backward()
        sums = self.world.sums({name: sum(torch.stack(v).tolist()) if v else 0.0 for name, v in values.items()})
        total = sum(s.term.weight * sums[s.term.name] for s in scored)
        norm = self.optimizer.step(self.state.step, total, scale=scale)
        if norm is None:
            self._skip(total)
        else:
            self.state.skipped = 0
            if self.average and not self.state.rollbacks:
                self.average.update()
        metrics = {"loss": total, **sums, "lr": scale * self.optimizer.lr(self.state.step)}
        return metrics | ({"grad_norm": norm} if norm is not None else {})

    def _idle(self) -> Metrics:
        """Make no update: no token had a target, or only an anchor has had any so far."""
        self.state.idle += 1
        why = "; ".join(f"'{term.name}': {term.if_empty}" for term in self.active if term.role != "anchor")
        self.event("idle", f"no token of this step has a target, so no update was made ({why})")
        self._act(self.guards.after_idle_step(self.state.idle))
        return {}

    def _skip(self, loss: float) -> None:
        """Note an update that was left out because the loss or the gradient is not finite."""
        self.state.skipped += 1
        what = "loss" if not math.isfinite(loss) else "gradient"
        self.event("non_finite", f"the {what} is not finite; the update was left out")
        finite = self.optimizer.finite()
        self._act(self.guards.after_skipped_step(what, self.state.skipped, weights_finite=finite))

    def _evaluate(self) -> None:
        """Measure the student on held-out prompts, keep the best weights, and ask gate, guards and recovery."""
        state = self.state
        metrics = self.evaluate() if self.evaluate and self.optimizer.finite() else {}
        if not metrics:
            return
        metrics |= gap_recovery(state.before or metrics, metrics)
        if self.gate:
            state.refused, changes = self.gate(metrics, state.refused if state.before else None)
            for text in changes:
                self.event("gate", text)
        self.log.evaluation(state.step, metrics)
        previous = state.after
        state.before, state.after = state.before or metrics, metrics
        state.stale += 1
        if not state.best or better(metrics, state.best):
            state.best, state.best_step, state.stale = metrics, state.step, 0
            self.checkpoints.save_best(self.student.model)
        if missing := self.guards.unmeasured(state.before, metrics):
            self.event("unmeasured", f"validation {missing} was not measured, so no guard judged this evaluation")
            return
        seen = self.guards.collapsed(state.before, state.best, metrics)
        compared = {"previous": previous, "best": state.best, "now": metrics}
        state.collapsing = self.guards.counted(state.collapsing, seen, step=state.step, **compared)
        counts = {"best_step": state.best_step, "stale": state.stale}
        self._act(self.guards.after_evaluation(seen, state.collapsing, last=self._last, **counts))
        if watching := self._watching:
            self._act(watching.after_evaluation(state, seen, averaged=self.average is not None))
            self._recover()

    def _recover(self) -> None:
        """Roll back if a guard has stopped the run and the recovery allows it."""
        if watching := self._watching:
            averaged = self.average is not None
            self._act(watching.after_stop(self.state, self.terms, steps=self.steps, averaged=averaged))

    def _act(self, action: Action) -> None:
        """Carry out a decision; the run stops and rolls back nowhere else."""
        match action:
            case Stop(guard, text):
                self.state.stopped_by = guard
                self.event(guard, text)
            case RollBack(step, then):
                saved = self.checkpoints.roll_back(self.run_state, step)
                self.state.rolled_back_to(saved, action)
                self._report_damage()
                self.event("rollback", f"back to the weights of step {saved.step}; {then}")
            case RefreshTeacher(text):
                assert self.average
                self.average.refresh()
                self.event("refresh", text)

    def _report_damage(self) -> None:
        """An event for each damage that was found in the checkpoints."""
        while self.checkpoints.warnings:
            self.event("damaged", self.checkpoints.warnings.pop(0))

    def event(self, kind: str, text: str) -> None:
        """Write an event to the log and keep it for the result."""
        self.state.events.append({"step": self.state.step, "kind": kind, "text": text})
        self.log.event(self.state.step, kind, text)

    @property
    def _watching(self) -> Recovery | None:
        """The recovery, if the run file asks for it or no evaluation judges the run."""
        asked = self.recovery and (self.recovery.times or not validation(self.state.before))
        return self.recovery if asked else None

    @property
    def _last(self) -> bool:
        """Whether the run ends after this step."""
        return self.state.step == self.steps or self.state.stopped_by is not None

    @property
    def _without_target(self) -> list[Term]:
        """Terms that teach, but had no target in the whole run."""
        return [t for t in self.active if t.role != "anchor" and not self.state.targets.get(t.name)]


@contextmanager
def _timed(times: Metrics, key: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    times[key] = time.perf_counter() - started
