"""``rollout``: what writes completions, how many and how long."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from opd.axes.engines import EngineChoice, Hf
from opd.axes.rollouts import SourceChoice, Student
from opd.config.base import Strict
from opd.types import Sampling


class SamplingConfig(Strict):
    """How the next token is drawn."""

    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0 takes the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the likeliest tokens that make up this probability."""
    top_k: int = Field(0, ge=0)
    """Sample from this number of likeliest tokens; 0 keeps all."""
    min_p: float = Field(0.0, ge=0, lt=1)
    """Sample from the tokens with at least this share of the likeliest one's probability; 0 keeps all."""

    @field_validator("temperature")
    @classmethod
    def _computable(cls, value: float) -> float:
        if 0 < value < 1e-4:
            raise ValueError(f"logits over {value:g} are too large to compute. Fix: set 0 for the likeliest token")
        return value

    @property
    def sampling(self) -> Sampling:
        """The same for engines."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, min_p=self.min_p)


class RolloutConfig(SamplingConfig):
    source: SourceChoice = Student()
    """What writes the completions: student (on-policy), teacher, references, mixture, prefix or recorded."""
    engine: EngineChoice = Hf()
    """What generates tokens."""
    prompts_per_step: int = Field(64, ge=1, le=1_000_000)
    """Number of prompts per step."""
    rollouts_per_prompt: int = Field(1, ge=1, le=100_000)
    """Number of rollouts per prompt."""
    max_new_tokens: int = Field(256, ge=1, le=10_000_000)
    """Most tokens after the prompt, tool results included."""
    max_turns: int = Field(8, ge=1)
    """Most assistant turns, if there is an environment."""
    grow_turns_every: int | None = Field(None, ge=1)
    """Start with one turn and allow another after this number of steps, up to ``max_turns`` (TCOD)."""
    ahead: int = Field(0, ge=0, le=1)
    """1 lets servers write the next step's rollouts while this step's are trained on: their weights are one update
    older. A policy gradient weighs their tokens by the importance ratio; another distance needs none."""
    stop: tuple[str | int, ...] = ()
    """Further ends of a turn, beside each model's own end tokens: token ids, or texts such as ``<|im_end|>``. The
    text of a special token ends a turn at that token. Any other text ends it at the token that completes the text; if
    the text is more than one token, tokens after it are generated and dropped."""

    @field_validator("stop", mode="before")
    @classmethod
    def _texts(cls, given: Any) -> Any:
        for one in given if isinstance(given, list | tuple) else ():
            if one == "":
                raise ValueError("an empty text ends no turn. Fix: leave it out")
            if isinstance(one, bool):
                raise ValueError(f"{one} is no token. Fix: give a token's id, or a text in quotes")
        return given

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Turns that grow need rollouts at every step; rollouts ahead need servers, and prompts that are known."""
        needs: dict[str, tuple[str, ...]] = {"grow_turns_every": ("no recording",)} if self.grow_turns_every else {}
        if self.ahead:
            needs["ahead"] = ("rollouts elsewhere", "student's rollouts", "prompts in order", "older tokens")
        return needs
