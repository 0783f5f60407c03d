"""``teacher``: what scores the rollouts, and what it sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from opd.axes.views import Plain, ViewChoice
from opd.axes.weights import Frozen, WeightsChoice
from opd.config.base import Strict
from opd.config.served import ServedConfig


class TeacherModelConfig(Strict):
    """One of several teachers; a bare string is its model."""

    model: str
    """Path or id; an adapter's folder too."""
    domains: tuple[str, ...] | None = Field(None, min_length=1)
    """Domains of the prompts that it scores; by default the one of its own name."""
    weight: float = Field(1.0, gt=0)
    """Weight beside other teachers of the same domain."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class LanguageTeacherConfig(TeacherModelConfig):
    """The same for language models, which a server may read."""

    served: ServedConfig | None = None
    """Servers that read the model: an address, a list of addresses, or settings. By default it is loaded here."""


class GateConfig(Strict):
    """Which teachers may teach which domain: only one that is better than the student there, and not too far from it.

    Every evaluation decides anew. A refused teacher comes back when it is better by more than ``margin``.
    """

    margin: float = Field(0.0, ge=0)
    """Least lead of the teacher's accuracy at the start. Later it is refused once the student leads by more than two
    standard errors."""
    min_overlap: float = Field(0.05, ge=0, le=1)
    """Least share of the 16 likeliest tokens that it has in common with the student."""
    by_quality: bool = False
    """Weight several teachers of one domain by their lead over the student."""


class TeacherConfig(Strict):
    weights: WeightsChoice = Frozen()
    """The student's own weights as teacher: frozen, ema or live. Not with ``model`` or ``models``."""
    model: str | None = None
    """Path or id of another model that teaches; an adapter's folder too."""
    models: dict[str, LanguageTeacherConfig] | None = Field(None, min_length=1)
    """Several teachers by name; each scores the prompts of its own domains."""
    served: ServedConfig | None = None
    """Servers that read ``model``: an address, a list of addresses, or settings. By default it is loaded here."""
    quantize: Literal["8bit", "4bit"] | None = None
    """Hold the weights of ``model`` or ``models`` in 8 or 4 bits, through bitsandbytes; by default in ``dtype``."""
    view: ViewChoice = Plain()
    """What the teacher reads before the student's tokens: plain, privileged, context, feedback or hint."""
    gate: GateConfig | None = None
    """Measure teachers against the student, and refuse those that would make it worse."""
    max_tokens: int = Field(16_384, ge=1)
    """Most tokens per scoring pass, padding included; lower it to save memory."""

    @model_validator(mode="after")
    def _one_kind(self) -> TeacherConfig:
        kinds = {
            "weights": self.weights != Frozen(),
            "model": self.model is not None,
            "models": self.models is not None,
        }
        given = [key for key, holds in kinds.items() if holds]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given, and each names a teacher. Fix: leave one of them out")
        if self.served and self.model is None:
            raise ValueError(
                "served says where a model is read, and no model is given. Fix: name it in model, or set "
                "models.NAME.served"
            )
        if self.quantize and self.is_served:
            raise ValueError("quantize and served: a server holds its own weights. Fix: leave one of them out")
        return self

    def needs(self) -> dict[str, tuple[str, ...]]:
        """A gate measures other models on held-out prompts; several teachers give a signal that can be mixed."""
        needs: dict[str, tuple[str, ...]] = {}
        if self.gate:
            needs["gate"] = ("teacher model", "teacher here", "held-out prompts", "diagnostics", "mixable signal")
        if self.models:
            needs["models"] = ("mixable signal",)
        if self.quantize:
            needs["quantize"] = ("teacher model",)
        return needs

    @property
    def is_model(self) -> bool:
        """Whether the teacher is another model, or several."""
        return self.model is not None or self.models is not None

    @property
    def is_served(self) -> bool:
        """Whether a server reads the teacher, or one of several."""
        return self.served is not None or any(one.served for one in (self.models or {}).values())

    def words(self) -> str:
        """The teacher's cell in the map."""
        if self.models:
            return f"{len(self.models)} models, by domain"
        return "another model" if self.model else self.weights.words()

    def named(self) -> str:
        """The teacher by name, for the model card."""
        several = ", ".join(f"{name} ({one.model})" for name, one in (self.models or {}).items())
        return several or self.model or f"the student's own weights ({self.weights.type})"

    @property
    def shares(self) -> dict[str, dict[str, float]]:
        """By domain and name, each teacher's weight."""
        return shares_of(self.models)


def shares_of(models: Mapping[str, TeacherModelConfig] | None) -> dict[str, dict[str, float]]:
    """By domain and name, each teacher's weight."""
    shares: dict[str, dict[str, float]] = {}
    for name, teacher in (models or {}).items():
        for domain in teacher.domains or (name,):
            shares.setdefault(domain, {})[name] = teacher.weight
    return shares
