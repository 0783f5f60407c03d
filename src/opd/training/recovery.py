"""Recovery: after a collapse, return to the last good checkpoint and continue with smaller steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opd.config.diffusion import DiffusionConfig
from opd.config.run import RunConfig
from opd.training.actions import NORMAL_ENDS, Continue, RefreshTeacher, RollBack, Stop
from opd.training.guards import HISTORY, LEAST, OF_TEXT, WINDOW, Watch, quality, typical, watched
from opd.training.state import State
from opd.types import Metrics, Term


@dataclass(frozen=True)
class Recovery:
    """Decides when a run rolls back; everything it remembers is in the run's state.

    A rollback restores the weights, the optimizer, the averaged teacher, the curriculum and the random state. The step
    counter continues, so the steps after a rollback use new prompts and seeds, and discarded steps still count as cost.
    From then on the learning rate is lower, the anchor is stronger, and an averaged teacher is not updated until an
    evaluation is the best so far with rollouts no longer than at the start (arXiv 2606.03532).

    A run whose held-out prompts judge nothing is watched too, with ``times`` 0: after a collapse it ends with its last
    good weights.

    Attributes:
        watch: judges the rollouts of every step.
        times: the largest number of rollbacks after which the run continues. With 0 the rollouts are watched only where
            no evaluation judges the run, and a collapse ends it.
        lr: factor on the learning rate for each rollback.
        anchor: least weight of the anchor after a rollback; each rollback doubles it. 0 leaves it unchanged.
        lag: steps by which the weights that generate rollouts are older than those that train on them.
    """

    watch: Watch
    times: int = 3
    lr: float = 0.3
    anchor: float = 0.2
    lag: int = 0

    def after_step(self, state: State, metrics: Metrics, terms: Sequence[Term]) -> Continue | Stop:
        """Note in the state whether the step's rollouts were good; stop if the last steps look collapsed."""
        distill = next((term.name for term in terms if term.role == "distill"), None)
        seen = watched(metrics, distill)
        if not seen or state.stopped_by not in NORMAL_ENDS:
            return Continue()
        if not state.first:
            state.first, state.top = seen, quality(seen) or 0.0
        state.recent = [*state.recent, seen][-HISTORY:]
        now = quality(typical(state.recent))
        if len(state.recent) >= LEAST and now is not None:
            state.top = max(state.top, now)
        if self.watch.healthy(state.first, state.top, seen, state.recent):
            # The weights before this step's update generated the rollouts, or older ones.
            state.healthy = max(state.step - 1 - self.lag, 0)
            state.proven = state.proven if self.times else state.healthy  # no evaluation will prove more
        collapsed = self.watch.collapsed(state.first, state.top, state.recent)
        return Stop(*collapsed) if collapsed else Continue()

    def after_evaluation(self, state: State, seen: str | None, *, averaged: bool) -> Continue | RefreshTeacher:
        """Note in the state whether the evaluation proves the weights; refresh the teacher after a rollback.

        Args:
            seen: what the guards said of the evaluation; None if it looks well.
            averaged: whether the teacher is an average of the student's weights.
        """
        if not seen:
            state.proven = state.step
        best = state.best_step == state.step
        longer = set(OF_TEXT) & set(self.watch.symptoms(state.before, state.after))
        if averaged and state.rollbacks and best and not longer:
            return RefreshTeacher("the teacher took over the student's weights, the best so far")
        return Continue()

    def after_stop(self, state: State, terms: Sequence[Term], *, steps: int, averaged: bool) -> Continue | RollBack:
        """Roll back if a guard stopped the run, at most once per step.

        Args:
            terms: of the loss, with their original weights.
            steps: length of the run; a rollback after its last step does not resume.
        """
        if state.stopped_by in NORMAL_ENDS or state.rolled_back == state.step:
            return Continue()
        good = state.proven if state.stopped_by == "collapse" else state.healthy
        if state.step == steps or state.rollbacks == self.times:
            why = f", for no {'step' if state.step == steps else 'rollback'} is left" if self.times else " with them"
            return RollBack(good, f"the run ends{why}", resume=False)
        lr_scale = state.lr_scale * self.lr
        anchors = {t.name: state.weights.get(t.name, t.weight) for t in terms if t.role == "anchor" and self.anchor}
        weights = {name: max(2 * weight, self.anchor) for name, weight in anchors.items()}
        then = [f"learning rate times {lr_scale:g}", *(f"anchor {weight:g}" for weight in weights.values())]
        then += ["teacher kept until an evaluation is the best so far"] if averaged else []
        return RollBack(good, ", ".join(then), lr_scale=lr_scale, weights=weights)


def recovery(config: RunConfig | DiffusionConfig) -> Recovery:
    """The recovery of ``guards.recover``; without that key one that only ends runs that no evaluation judges."""
    recover, number = config.guards.recover, config.rollout.prompts_per_step
    lag = config.rollout.ahead if isinstance(config, RunConfig) else 0
    if recover is None:
        return Recovery(Watch(prompts=number, least=max(2 * WINDOW, config.optimizer.warmup)), times=0, lag=lag)
    watch = Watch(prompts=number, least=LEAST, **recover.thresholds)
    return Recovery(watch, times=recover.times, lr=recover.lr, anchor=recover.anchor, lag=lag)
