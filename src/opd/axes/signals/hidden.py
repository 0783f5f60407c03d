"""The teacher's hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from opd.axes.context import RunContext
from opd.axes.signals.base import SignalConfig
from opd.config.base import Strict
from opd.errors import ConfigError

if TYPE_CHECKING:
    from opd.losses.hidden import Projection
    from opd.types import Objective, Teacher


class BridgeConfig(Strict):
    """Frozen projections into a common space, for a teacher of another width or depth (OPRD-Bridge)."""

    rank: int = Field(8, ge=1)
    """Dimensions of that space."""
    prompts: int = Field(256, ge=1)
    """Number of training prompts whose rollouts the projections are fitted on, before the first step."""


class Hidden(SignalConfig):
    """Squared distances between hidden states (OPRD, arXiv 2606.06021)."""

    type: Literal["hidden"] = "hidden"
    blocks: tuple[int, ...] | None = None
    """The student's blocks, from 1; by default all. Those of another teacher are at the same relative depth."""
    normalize: bool = False
    """Compare directions only; the loss is then smaller by orders of magnitude."""
    bridge: BridgeConfig | None = None
    """For a teacher of another width or depth."""

    def words(self) -> str:
        """The signal's cell in the map."""
        return f"hidden states, bridge of {self.bridge.rank}" if self.bridge else "hidden states"

    def distance(self, divergence: str) -> str:
        """What the loss measures."""
        return "squared distance of hidden states"

    def layers(self, run: RunContext) -> list[int]:
        """The student's blocks.

        Raises:
            ConfigError: the student has no such block.
        """
        known = run.student.num_layers
        blocks = list(self.blocks or range(1, known + 1))
        for block in blocks:
            if not 1 <= block <= known:
                raise ConfigError(
                    f"loss.signal.blocks: the student has no block {block}. Fix: name blocks 1 to {known}"
                )
        return blocks

    def build(self, run: RunContext) -> tuple[Teacher, Objective]:
        """A teacher of hidden states; a bridge is fitted on the initial student's rollouts."""
        from opd.losses.objectives import HiddenStates
        from opd.teachers.hidden import HiddenTeacher, matching_layers

        student, teacher, layers = run.student, run.scoring, self.layers(run)
        max_tokens = run.config.teacher.max_tokens
        theirs = matching_layers(layers, student.num_layers, teacher.num_layers)
        shapes = [(m.num_layers, m.width) for m in (student, teacher)]
        if self.bridge is None:
            if shapes[0] != shapes[1]:
                raise ConfigError(
                    f"loss.signal=hidden: the student has {shapes[0][0]} blocks of width {shapes[0][1]}, the teacher "
                    f"{shapes[1][0]} of width {shapes[1][1]}. Fix: set loss.signal.bridge={{rank: 8}}"
                )
            return HiddenTeacher(teacher, theirs, max_tokens=max_tokens), HiddenStates(normalise=self.normalize)
        ours, target = self._fitted(run, layers, theirs)
        projected = HiddenTeacher(teacher, theirs, projection=target, max_tokens=max_tokens)
        return projected, HiddenStates(projection=ours, normalise=self.normalize)

    def _fitted(self, run: RunContext, layers: list[int], theirs: list[int]) -> tuple[Projection, Projection]:
        """The student's projection and the teacher's."""
        import torch

        from opd.models.forward import sort_key, states_of
        from opd.teachers.hidden import fit_bridge

        bridge, student, teacher = self.bridge, run.student, run.scoring
        assert bridge is not None
        rollouts = run.first_rollouts(bridge.prompts, rollouts_per_prompt=run.config.rollout.rollouts_per_prompt)
        segments = run.view().segments(rollouts)
        where, own = states_of(
            student, rollouts, run.plain_segments(rollouts), max_tokens=run.config.teacher.max_tokens, layers=layers
        )
        there, other = states_of(teacher, rollouts, segments, max_tokens=run.config.teacher.max_tokens, layers=theirs)
        other = other.arrived()
        own = own.take(torch.isin(sort_key(where), sort_key(there)))
        assert own.layers_TKD is not None
        assert other.layers_TKD is not None
        positions, width = len(own.hidden_TD), student.width
        narrower = min(width, teacher.width)
        if bridge.rank > narrower or positions <= width:
            raise ConfigError(
                f"loss.signal.bridge: rank={bridge.rank} has to be at most {narrower}, the narrower model's width, and "
                f"{positions} scored positions of {bridge.prompts} prompts more than {width}. Fix: lower the rank or "
                "raise bridge.prompts"
            )
        return fit_bridge(own.layers_TKD, other.layers_TKD, bridge.rank)
