"""``loss.divergence``: a registered name, or ``package.module:NAME`` of a user's own ``Divergence``."""

from __future__ import annotations

import sys
from typing import Any

from pydantic import model_validator

from opd.axes.base import GIVEN, import_named
from opd.config.base import Strict
from opd.errors import ConfigError, near

WORDS = {"jsd": "Jensen–Shannon", "forward_kl": "forward KL", "reverse_kl": "reverse KL"}

DIVERGENCE_WORDS = {
    "forward_kl": "KL(teacher‖student): spreads over every token with teacher probability.",
    "reverse_kl": "KL(student‖teacher): concentrates on the teacher's likeliest tokens.",
    "jsd": "Generalised Jensen–Shannon divergence between the two, with mixture weight beta.",
    "skew_forward": "KL(teacher‖mixture of both), bounded (DistiLLM).",
    "skew_reverse": "KL(student‖mixture of both), bounded (DistiLLM).",
    "alpha": "α-divergence, between forward and reverse KL.",
    "total_variation": "Half the sum of absolute differences.",
}
"""Every shipped divergence in a line."""

WITHOUT_BETA = ("forward_kl", "reverse_kl", "total_variation")
"""The divergences that have no mixture weight."""


class DivergenceConfig(Strict):
    """A divergence by name; a bare string stands for one without settings."""

    type: str = "forward_kl"
    """forward_kl = KL(teacher‖student), reverse_kl = KL(student‖teacher), jsd, skew_forward, skew_reverse, alpha,
    total_variation, one that was registered, or ``package.module:NAME``."""
    beta: float = 0.5
    """Mixture weight of jsd, of skew_forward and skew_reverse (DistiLLM's α), and of alpha; above 0 and below 1."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> DivergenceConfig:
        """Refuse an unknown name without importing the divergences; where some were registered, they are imported."""
        losses = sys.modules.get("opd.losses.divergences")
        known = losses.DIVERGENCES if losses else DIVERGENCE_WORDS
        if self.type in known or ":" in self.type or self.type == GIVEN:
            return self
        raise ValueError(
            f"there is no divergence '{self.type}'{near(self.type, known)} Fix: choose {', '.join(known)}, or "
            "package.module:NAME"
        )

    @model_validator(mode="after")
    def _inside(self) -> DivergenceConfig:
        if not 0 < self.beta < 1:
            raise ValueError(
                f"beta={self.beta:g} is not above 0 and below 1, and at both ends jsd is always zero. Fix: set "
                "loss.divergence=forward_kl (what jsd / beta tends to at 0) or reverse_kl (its limit at 1)"
            )
        return self

    @model_validator(mode="after")
    def _beta_applies(self) -> DivergenceConfig:
        if self.type in WITHOUT_BETA and self.beta != type(self).model_fields["beta"].default:
            raise ValueError(
                f"beta={self.beta} has no effect on {self.type}. Fix: write loss.divergence={self.type} without "
                "beta, or choose jsd, skew_forward, skew_reverse or alpha"
            )
        return self

    def words(self) -> str:
        """The divergence's name for people."""
        return WORDS.get(self.type, self.type.replace("_", " "))

    def resolve(self, given: Any = None) -> str:
        """The registered name of the divergence; a user's own is imported and registered first.

        Args:
            given: a ``Divergence`` that was given from Python.

        Raises:
            ConfigError: it cannot be imported, or is none.
        """
        from opd.losses.divergences import DIVERGENCES, Divergence, check_divergence

        if ":" in self.type or self.type == GIVEN:
            own = given if self.type == GIVEN else import_named(self.type, key="loss.divergence")
            if not isinstance(own, Divergence):
                raise ConfigError(
                    f"loss.divergence: '{self.type}' is a {type(own).__name__}. Fix: make it an opd.losses.Divergence"
                )
            DIVERGENCES[self.type] = own
        check_divergence(self.type, beta=self.beta)
        return self.type
