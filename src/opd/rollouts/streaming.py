"""Rollouts that go to the teacher's servers as they end, while others are still written."""

from __future__ import annotations

import math
from collections.abc import Sequence

from opd.rollouts.sampler import Sampler
from opd.servers.model import ServedModel, asking_ahead
from opd.teachers.by_domain import TeachersByDomain
from opd.teachers.hidden import HiddenTeacher
from opd.teachers.local import LocalTeacher, Once
from opd.teachers.sampled import SampledTeacher
from opd.types import Prompt, Rollout, Teacher, Term, View


class Streaming:
    """Asks the teacher about each group of rollouts once all of it is written, and keeps the answers for the update.

    The questions are those of the whole batch, so the signals are the same to the last bit.

    Args:
        sampler: writes the rollouts.
        teacher: scores without waiting for its servers.
        view: what the teacher reads; that of a rollout depends on no other.
        models: the teacher's served models.
    """

    def __init__(self, sampler: Sampler, teacher: Teacher, view: View, models: Sequence[ServedModel]) -> None:
        self.sampler, self.teacher, self.view = sampler, teacher, view
        self.size = math.lcm(*(model.server.settings.sequences for model in models))

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> Sequence[Rollout]:
        """The sampler's rollouts."""
        written: dict[int, Rollout] = {}

        def finished(index: int, rollout: Rollout) -> None:
            written[index] = rollout
            first = index // self.size * self.size
            group = [written.get(i) for i in range(first, min(first + self.size, len(prompts)))]
            whole = [one for one in group if one is not None]
            if len(whole) == len(group):
                self._ask(whole)

        return self.sampler.rollout(prompts, seed, step, finished)

    def _ask(self, rollouts: Sequence[Rollout]) -> None:
        before = asking_ahead.set(True)
        try:
            self.teacher.score(rollouts, self.view.segments(rollouts))
        finally:
            asking_ahead.reset(before)


def asks_ahead(term: Term) -> Teacher | None:
    """A term's teacher without what waits for its answers; None if it cannot be asked ahead."""
    teacher = term.teacher
    if isinstance(teacher, SampledTeacher):
        teacher = teacher.teacher
    if isinstance(teacher, Once):
        teacher = teacher.teacher
    if isinstance(teacher, HiddenTeacher) and teacher.projection is None:
        return teacher
    return teacher if isinstance(teacher, LocalTeacher | TeachersByDomain) else None
