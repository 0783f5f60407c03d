"""Teachers and views of denoising runs: targets for the visited states, and the teacher's conditioning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import torch

from opd.axes.views.plain import PlainView
from opd.diffusion.divergences import convert
from opd.diffusion.forward import scoring_pass, states_at, trajectories_of
from opd.diffusion.images import image_of
from opd.diffusion.models import DenoisingModel
from opd.diffusion.schedules import NoiseSchedule
from opd.diffusion.types import ImageSegment, PredictionSignal, RewardSignal, TransitionSignal
from opd.models.forward import sort_key
from opd.teachers.local import Answers
from opd.teachers.sampled import GroupAdvantages
from opd.types import Rollout, Segment, Span


class ImageView:
    """The teacher is conditioned on the prompt and its image; prompts without an image get no segment.

    Source: D-OPSD, arXiv 2605.05204.
    """

    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        """One segment per trajectory whose prompt has an image."""
        segments: list[Segment] = []
        for index, rollout in enumerate(rollouts):
            image = image_of(rollout.prompt)
            if image is not None:
                span = Span(0, len(rollout.completion_ids))
                segments.append(ImageSegment(rollout=index, context_ids=(), span=span, image=image))
        return segments


class NoisedImageView:
    """The states of noised images; sampled trajectories get no segment."""

    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        """One segment per noised image."""
        return [s for s in PlainView().segments(rollouts) if rollouts[s.rollout].source == "references"]


class DenoisingTeacher:
    """A model that predicts at the student's states.

    Args:
        model: the denoising model.
        schedule: the student's noise schedule.
        own: the same steps by the teacher's scheduler; its predictions are converted to the student's parameterisation.
        guidance: classifier-free guidance.
        max_rows: most states per forward pass.
    """

    def __init__(
        self,
        model: DenoisingModel,
        schedule: NoiseSchedule,
        *,
        own: NoiseSchedule | None = None,
        guidance: float,
        max_rows: int,
    ) -> None:
        self.model = model
        self.schedule = schedule
        self.own = own or schedule
        self.guidance = guidance
        self.max_rows = max_rows

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> PredictionSignal:
        """The model's prediction at every trained state."""
        where, states = scoring_pass(
            self.model, self.schedule, rollouts, segments, guidance=self.guidance, max_rows=self.max_rows
        )
        states_TX, step_T = states_at(rollouts, where)
        target_TX = convert(states.prediction_TX, states_TX, step_T, self.own, self.schedule)
        return PredictionSignal(where.rollout_T, where.position_T, where.token_T, target_TX.float(), step_T)


class DomainTeachers:
    """Several teachers, each for the prompts of its own domains; teachers that share a domain are averaged.

    For squared distances the loss to the mean prediction and the mean of the losses differ by a constant, so both have
    the same gradient.

    Args:
        teachers: by name.
        shares: by domain and name; not normalised.

    Source: DiffusionOPD, arXiv 2605.15055.
    """

    def __init__(self, teachers: Mapping[str, DenoisingTeacher], shares: Mapping[str, Mapping[str, float]]) -> None:
        self.teachers = teachers
        self.shares = shares

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> PredictionSignal:
        """The weighted mean of the teachers' predictions; each teacher scores its own trajectories once."""
        mean: PredictionSignal | None = None
        table = [self.shares[rollout.prompt.domain] for rollout in rollouts]
        for name, teacher in self.teachers.items():
            signal = teacher.score(rollouts, [s for s in segments if name in table[s.rollout]])
            share_B = torch.tensor([row.get(name, 0.0) / sum(row.values()) for row in table])
            share_T = share_B[signal.rollout_T].view(-1, *(1 for _ in signal.target_TX.shape[1:]))
            weighted = replace(signal, target_TX=share_T * signal.target_TX)
            mean = weighted if mean is None else added(mean, weighted)
        assert mean is not None  # there is at least one teacher
        return mean


def added(one: PredictionSignal, other: PredictionSignal) -> PredictionSignal:
    """The union of two signals; targets at the same state are added."""
    both = replace(one, **{f.name: torch.cat([getattr(s, f.name) for s in (one, other)]) for f in fields(one)})
    key_T, place_T = sort_key(both).unique(return_inverse=True)
    last_T = torch.zeros(len(key_T), dtype=torch.int64).scatter(0, place_T, torch.arange(len(both)))
    target_TX = torch.zeros(len(key_T), *both.target_TX.shape[1:]).index_add(0, place_T, both.target_TX)
    return replace(both.take(last_T), target_TX=target_TX)


class ImageTarget:
    """The target of supervised fine-tuning: the prediction that leads from a noised image back to the clean one.

    Args:
        schedule: of the run, with every noise level of the images.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> PredictionSignal:
        """The prediction whose denoised mean is the clean latent, at every state."""
        where = Answers().score(rollouts, segments)
        clean_TX = torch.stack([t.latents_KX[-1] for t in trajectories_of(rollouts)])[where.rollout_T]
        states_TX, step_T = states_at(rollouts, where)
        target_TX = self.schedule.prediction(step_T, states_TX, clean_TX).float()
        return PredictionSignal(where.rollout_T, where.position_T, where.token_T, target_TX, step_T)


class RewardAdvantage:
    """The group-relative advantage of each transition: the reward, compared among trajectories of one prompt.

    Args:
        advantages: turns rewards into advantages.

    Source: Flow-GRPO, arXiv 2505.05470.
    """

    def __init__(self, advantages: GroupAdvantages) -> None:
        self.advantages = advantages

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> TransitionSignal:
        """An advantage for every trained transition."""
        advantages = self.advantages.score(rollouts, segments)
        states_TX, step_T = states_at(rollouts, advantages)
        next_TX, _ = states_at(rollouts, advantages, later=1)
        values = {f.name: getattr(advantages, f.name) for f in fields(advantages)}
        return TransitionSignal(**values, state_TX=states_TX, next_TX=next_TX, step_T=step_T)


class RewardStates:
    """The last states of each trajectory, at whose denoised means the reward is differentiated.

    Args:
        states: number of states of each trajectory, from the last.

    Source: ReFL, arXiv 2304.05977; DRaFT, arXiv 2309.17400.
    """

    def __init__(self, states: int) -> None:
        self.states = states

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> RewardSignal:
        """The last trained states, and their prompts."""
        late = []
        for segment in segments:
            start, stop = segment.span
            late.append(replace(segment, span=Span(max(start, stop - self.states), stop)))
        where = Answers().score(rollouts, late)
        prompts = tuple(rollout.prompt for rollout in rollouts)
        states_TX, step_T = states_at(rollouts, where)
        return RewardSignal(where.rollout_T, where.position_T, where.token_T, states_TX, step_T, prompts=prompts)
