"""After a collapse: back to the last good checkpoint, and on from there with more care."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opd.evaluation.metrics import Metrics
from opd.training.guards import LEAST, OF_TEXT, WINDOW, Watch, typical, watched

if TYPE_CHECKING:
    from opd.loop import Loop


@dataclass(frozen=True)
class Recovery:
    """Takes up a run that a guard or the watch has stopped; all it knows of a run is in the run's state.

    A rollback puts back weights, optimizer, the teacher's average, what a curriculum has learned, and the random state.
    Steps go on counting, so the next rollouts have other prompts and other draws, and a rollback costs what it costs.
    From then on steps are smaller, the anchor is stronger, and a teacher made of the student's weights stays as it is,
    until an evaluation is the best so far with rollouts no longer than they were (arXiv 2606.03532).

    Attributes:
        watch: looks at every step's rollouts.
        times: the most rollbacks that are followed by further steps.
        lr: what each rollback multiplies the learning rate with.
        anchor: the anchor's least weight after a rollback; each further one doubles it. 0 leaves it as it is.
    """

    watch: Watch
    times: int = 3
    lr: float = 0.3
    anchor: float = 0.2

    def look(self, loop: Loop, metrics: Metrics) -> None:
        """After a step: note whether its rollouts speak for the weights they came from, and roll back if need be."""
        state, figures = loop.state, watched(metrics)
        if figures and state.stopped_by in (None, "idle"):
            if not state.first:
                state.first, state.top = figures, figures.get("accuracy", 0.0)
            state.recent = [*state.recent, figures][-WINDOW:]
            if len(state.recent) >= LEAST:
                state.top = max(state.top, typical(state.recent).get("accuracy", 0.0))
            if self.watch.healthy(state.first, state.top, figures):
                state.healthy = state.step - 1  # this step's rollouts were made before its update
            seen = self.watch.collapsed(state.first, state.top, state.recent)
            if seen:
                loop.stop(*seen)
        self.take_up(loop)

    def evaluated(self, loop: Loop) -> None:
        """After an evaluation: note whether it proves the weights, and roll back or refresh the teacher if need be."""
        state = loop.state
        if state.before and not state.collapsing:
            state.proven = state.step
        if loop.average and state.rollbacks and state.best_step == state.step and self.tail_is_safe(loop):
            loop.average.refresh()
            loop.event("refresh", "the teacher took over the student's weights, the best so far")
        self.take_up(loop)

    def tail_is_safe(self, loop: Loop) -> bool:
        """Whether evaluated rollouts are not longer, cut or repetitive beside those at the start."""
        return not set(OF_TEXT) & set(self.watch.symptoms(loop.state.before, loop.state.after))

    def take_up(self, loop: Loop) -> None:
        """Roll back if the run was stopped by a collapse, and let it go on if it may."""
        state = loop.state
        if state.stopped_by in (None, "idle") or state.rolled_back == state.step:
            return
        saved = loop.checkpoints.roll_back(loop, state.proven if state.stopped_by == "collapse" else state.healthy)
        state.top = max(saved.top, state.first.get("accuracy", 0.0))
        state.rolled_back = state.healthy = state.step
        state.proven = state.step if saved.step <= state.proven else state.proven
        state.skipped = state.collapsing = state.idle = 0
        state.recent = []
        back = f"back to the weights of step {saved.step}"
        if state.step == loop.steps or state.rollbacks == self.times:
            left = "step" if state.step == loop.steps else "rollback"
            loop.event("rollback", f"{back}; the run ends, for no {left} is left")
            return
        state.rollbacks += 1
        state.stopped_by = None
        state.lr_scale *= self.lr
        done = f"{back}; learning rate times {state.lr_scale:g}"
        anchor = next((t for t in loop.terms if t.name == "anchor"), None)
        if anchor and self.anchor:
            state.weights["anchor"] = max(2 * state.weights.get("anchor", anchor.weight), self.anchor)
            done += f", anchor {state.weights['anchor']:g}"
        if loop.average:
            done += ", teacher kept until an evaluation is the best so far"
        loop.event("rollback", done)
