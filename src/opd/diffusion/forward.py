"""Forward passes over visited states: one function reads for the student (with gradients) and for every teacher.

Suffixes: T states, X the dimensions of a latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from opd.axes.views.plain import PlainView
from opd.diffusion.conditioning import Conditioning
from opd.diffusion.models import DenoisingModel
from opd.diffusion.schedules import NoiseSchedule
from opd.diffusion.types import ImageSegment, PredictionStates, Trajectory, fingerprint
from opd.models.forward import sort_key
from opd.teachers.local import Answers
from opd.types import Rollout, Segment, Signal


def trajectories_of(rollouts: Sequence[Rollout]) -> list[Trajectory]:
    """Rollouts as what they are in a denoising run."""
    trajectories = [r for r in rollouts if isinstance(r, Trajectory)]
    assert len(trajectories) == len(rollouts)
    return trajectories


def states_at(rollouts: Sequence[Rollout], where: Signal, *, later: int = 0) -> tuple[Tensor, Tensor]:
    """States of a batch's trajectories, on the CPU.

    Args:
        where: T of them.
        later: so many steps after each.

    Returns:
        float32 [T, C, H, W], and their steps in the sampler's table, int64 [T].
    """
    known = trajectories_of(rollouts)
    places = list(zip(where.rollout_T.tolist(), where.position_T.tolist(), strict=True))
    step_T = torch.tensor([known[r].steps[k] for r, k in places], dtype=torch.int64)
    if not places:
        return torch.zeros(0, *known[0].latents_KX.shape[1:]), step_T
    return torch.stack([known[r].latents_KX[k + later] for r, k in places]), step_T


def read(
    model: DenoisingModel,
    schedule: NoiseSchedule,
    rollouts: Sequence[Rollout],
    where: Signal,
    told: Sequence[Conditioning],
    guidance: float,
) -> tuple[Signal, PredictionStates]:
    """One forward pass over some states.

    A state's fingerprint is taken from the very tensors that the model read, so that ``align`` compares what was
    scored and not what was meant.

    Args:
        schedule: says which time a step has.
        where: the states.
        told: what the model is told about each of them.
    """
    states_TX, step_T = states_at(rollouts, where)
    states_TX, time_T = states_TX.to(model.device), schedule.time(step_T).to(model.device)
    prediction_TX = model.predict(states_TX, time_T, told, guidance)
    scored = Signal(where.rollout_T, where.position_T, fingerprint(states_TX, time_T).cpu())
    return scored, PredictionStates(prediction_TX)


def student_pass(
    model: DenoisingModel,
    rollouts: Sequence[Rollout],
    *,
    schedule: NoiseSchedule,
    guidance: float,
    size: int | None = None,
) -> Iterator[tuple[Signal, PredictionStates]]:
    """The student reads its own trajectories with gradients, so many at a time, or all at once.

    As it drew them, in eval mode: a class-conditional transformer in training forgets a tenth of its labels.
    """
    model.model.eval()
    told = model.encode([rollout.prompt for rollout in rollouts])
    where = Answers().score(rollouts, PlainView().segments(rollouts))
    for start in range(0, len(rollouts), size or len(rollouts)):
        stop = start + (size or len(rollouts))
        rows = where.take((where.rollout_T >= start) & (where.rollout_T < stop))
        if len(rows):
            scored, states = read(model, schedule, rollouts, rows, [told[r] for r in rows.rollout_T.tolist()], guidance)
            yield scored.to(model.device), states


@torch.no_grad()
def scoring_pass(
    model: DenoisingModel,
    schedule: NoiseSchedule,
    rollouts: Sequence[Rollout],
    segments: Sequence[Segment],
    *,
    guidance: float,
    max_rows: int,
) -> tuple[Signal, PredictionStates]:
    """What a model predicts at every state of some segments: detached, without dropout, on the CPU, in order."""
    seen = [s.image if isinstance(s, ImageSegment) else None for s in segments]
    told = model.encode([rollouts[s.rollout].prompt for s in segments], seen)
    known = {s.rollout: what for s, what in zip(segments, told, strict=True)}  # no view shows a trajectory twice
    where = Answers().score(rollouts, segments)
    where = where.take(sort_key(where).argsort())
    training = model.model.training
    model.model.eval()
    parts = []
    for start in range(0, len(where), max_rows):
        rows = where.take(torch.arange(start, min(start + max_rows, len(where))))
        scored, states = read(model, schedule, rollouts, rows, [known[r] for r in rows.rollout_T.tolist()], guidance)
        parts.append((scored.token_T, states.prediction_TX.cpu()))
    model.model.train(training)
    if not parts:
        return where, PredictionStates(torch.zeros(0, *model.shape))
    token_T, prediction_TX = (torch.cat(column) for column in zip(*parts, strict=True))
    return Signal(where.rollout_T, where.position_T, token_T), PredictionStates(prediction_TX)
