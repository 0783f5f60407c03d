"""``experimental``: options that gained nothing in our own measurements. They work and are tested."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from opd.config.base import Strict


class ExtrapolateConfig(Strict):
    """Go further along the update so far if validation gains by it, after steps 1, 2, 4, 8, … (EffOPD)."""

    prompts: int = Field(50, ge=1)
    """Number of training prompts that decide, by greedy accuracy or by the divergence."""
    candidates: int = Field(5, ge=1)
    """Most candidates W + 2kΔ, k = 1, 2, …; the first that is no better ends the search."""


class CurriculumConfig(Strict):
    """Prioritised prompt sampling. The fields are the mixture weights of the priorities."""

    success: float = Field(0.0, ge=0)
    """p (1 − p), p the prompt's success rate so far. Needs rewards."""
    divergence: float = Field(0.0, ge=0)
    """The mean loss of its tokens so far. Needs a teacher."""
    staleness: float = Field(0.0, ge=0)
    """Steps since it was last used."""
    uniform: float = Field(0.1, ge=0)
    """The same for all prompts."""
    keep: float = Field(0.8, ge=0, lt=1)
    """Weight of older evidence about a prompt at each new one."""

    @model_validator(mode="after")
    def _some(self) -> CurriculumConfig:
        if not self.success + self.divergence + self.staleness + self.uniform:
            raise ValueError("all weights are 0, so no prompt would be drawn. Fix: set success, divergence or uniform")
        return self

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Evidence for the priorities that are used."""
        used: dict[str, tuple[str, ...]] = {"": ("student writes", "no recording")}
        used["success"] = ("rewards",) if self.success else ()
        used["divergence"] = ("teacher pass", "token losses") if self.divergence else ()
        return used


class HardestConfig(Strict):
    """Only the tokens that are hardest for the student as it is; costs a forward pass (TIP, arXiv 2604.14084).

    A selection without importance correction: tokens that are left out add nothing to the loss.
    """

    by: Literal["divergence", "entropy"] = "divergence"
    """The loss at each token, for whole distributions; or the student's entropy, for any signal."""
    share: float = Field(0.5, gt=0, lt=1)
    """Share of a step's tokens that is kept."""

    def needs(self) -> dict[str, tuple[str, ...]]:
        """A divergence needs whole distributions."""
        return {"": ("distributions",) if self.by == "divergence" else ()}


class ExperimentalConfig(Strict):
    extrapolate: ExtrapolateConfig | None = None
    """Extrapolate weights along the update."""
    curriculum: CurriculumConfig | None = None
    """Prioritised prompts; by default each prompt once per epoch."""
    hardest_tokens: HardestConfig | None = None
    """Train on the hardest tokens only."""
    combine: Literal["losses", "arithmetic", "geometric", "alternate"] = "losses"
    """Several teachers of one prompt: the mean of their losses, one loss to the arithmetic or geometric mean of their
    distributions, or one of them drawn for each rollout."""
    conflict: bool = False
    """Measure at every evaluation how far each two teachers disagree, and the cosine of two domains' gradients."""

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Several teachers."""
        needs: dict[str, tuple[str, ...]] = {}
        if self.combine != "losses":
            needs["combine"] = ("several teachers",)
        if self.conflict:
            needs["conflict"] = ("several teachers", "held-out prompts", "diagnostics", "distributions")
        return needs
