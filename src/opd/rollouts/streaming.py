"""Rollouts that go to the teacher's servers as they end, while others are still written."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from opd.rollouts.sampler import Sampler
from opd.servers.model import ServedModel, asking_ahead
from opd.teachers.by_domain import TeachersByDomain
from opd.teachers.hidden import HiddenTeacher
from opd.teachers.local import LocalTeacher, Once
from opd.teachers.sampled import SampledTeacher
from opd.types import Prompt, Rollout, Teacher, Term, View


class Streaming:
    """Asks the teacher about rollouts as they end, a group at a time, and keeps the answers for the update.

    Groups are taken in the order in which rollouts end; where servers write them, and that order is chance, a group has
    rollouts whose numbers follow each other, so that the same rollouts always make the same questions.

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
        chance = getattr(self.sampler.engine, "independent", False)
        groups: dict[int, list[tuple[int, Rollout]]] = defaultdict(list)
        ended = 0

        def finished(index: int, rollout: Rollout) -> None:
            nonlocal ended
            number = (index if chance else ended) // self.size
            ended += 1
            groups[number].append((index, rollout))
            if len(groups[number]) == min(self.size, len(prompts) - number * self.size):
                self._ask([one for _, one in sorted(groups.pop(number), key=lambda pair: pair[0])])

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
