"""Forward passes over visited states: of the student with gradients, and of every teacher.

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
    """The rollouts of a denoising run, typed as trajectories."""
    trajectories = [r for r in rollouts if isinstance(r, Trajectory)]
    assert len(trajectories) == len(rollouts)
    return trajectories


def states_at(rollouts: Sequence[Rollout], where: Signal, *, later: int = 0) -> tuple[Tensor, Tensor]:
    """States of a batch's trajectories, on the CPU.

    Args:
        where: the T positions.
        later: take the states this number of steps after the positions.

    Returns:
        float32 [T, C, H, W], and the positions' steps in the run's schedule, int64 [T].
    """
    trajectories = trajectories_of(rollouts)
    places = list(zip(where.rollout_T.tolist(), where.position_T.tolist(), strict=True))
    step_T = torch.tensor([trajectories[r].steps[k] for r, k in places], dtype=torch.int64)
    if not places:
        return torch.zeros(0, *trajectories[0].latents_KX.shape[1:]), step_T
    return torch.stack([trajectories[r].latents_KX[k + later] for r, k in places]), step_T


def forward_pass(
    model: DenoisingModel,
    schedule: NoiseSchedule,
    rollouts: Sequence[Rollout],
    where: Signal,
    conditioning: Sequence[Conditioning],
    guidance: float,
) -> tuple[Signal, PredictionStates]:
    """The model's predictions at some states.

    Each state's fingerprint is computed from the tensors that the model gets as input, so ``align`` compares the
    inputs themselves.

    Args:
        schedule: the time of each step.
        where: the T states.
        conditioning: one per state.

    Returns:
        The states with their fingerprints, and the predictions; gradients flow unless the caller turned them off.
    """
    states_TX, step_T = states_at(rollouts, where)
    states_TX, time_T = states_TX.to(model.device), schedule.time(step_T).to(model.device)
    prediction_TX = model.predict(states_TX, time_T, conditioning, guidance)
    scored = Signal(where.rollout_T, where.position_T, fingerprint(states_TX, time_T).cpu())
    return scored, PredictionStates(prediction_TX)


def student_passes(
    model: DenoisingModel,
    rollouts: Sequence[Rollout],
    *,
    schedule: NoiseSchedule,
    guidance: float,
    size: int | None = None,
) -> Iterator[tuple[Signal, PredictionStates]]:
    """Forward passes of the student over its own trajectories, with gradients.

    The model is in eval mode, as in its rollouts: a class-conditional transformer in training mode drops a tenth of
    its labels.

    Args:
        size: trajectories per pass; None for all at once.
    """
    model.model.eval()
    conditioning = model.encode([rollout.prompt for rollout in rollouts])
    where = Answers().score(rollouts, PlainView().segments(rollouts))
    for start in range(0, len(rollouts), size or len(rollouts)):
        stop = start + (size or len(rollouts))
        rows = where.take((where.rollout_T >= start) & (where.rollout_T < stop))
        if len(rows):
            own = [conditioning[r] for r in rows.rollout_T.tolist()]
            scored, states = forward_pass(model, schedule, rollouts, rows, own, guidance)
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
    """A model's predictions at every state of some segments: detached, in eval mode, on the CPU, in order."""
    images = [s.image if isinstance(s, ImageSegment) else None for s in segments]
    encoded = model.encode([rollouts[s.rollout].prompt for s in segments], images)
    conditioning = {s.rollout: one for s, one in zip(segments, encoded, strict=True)}  # one segment a trajectory
    where = Answers().score(rollouts, segments)
    where = where.take(sort_key(where).argsort())
    training = model.model.training
    model.model.eval()
    parts = []
    for start in range(0, len(where), max_rows):
        rows = where.take(torch.arange(start, min(start + max_rows, len(where))))
        own = [conditioning[r] for r in rows.rollout_T.tolist()]
        scored, states = forward_pass(model, schedule, rollouts, rows, own, guidance)
        parts.append((scored.token_T, states.prediction_TX.cpu()))
    model.model.train(training)
    if not parts:
        return where, PredictionStates(torch.zeros(0, *model.shape))
    token_T, prediction_TX = (torch.cat(column) for column in zip(*parts, strict=True))
    return Signal(where.rollout_T, where.position_T, token_T), PredictionStates(prediction_TX)
