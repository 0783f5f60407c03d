"""``rollout``: who writes, on which prompts, how much and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from opd.config.base import Strict


class CurriculumConfig(Strict):
    """Prompts by what they still teach, instead of each once per epoch. Weights of what speaks for a prompt."""

    success: float = Field(0.0, ge=0)
    """p (1 − p), p the prompt's success rate so far; most for one not seen yet. Needs rewards."""
    divergence: float = Field(0.0, ge=0)
    """The mean loss of its tokens so far; that of the worst prompt for one not seen yet. Needs a teacher."""
    staleness: float = Field(0.0, ge=0)
    """Steps since it was last seen."""
    uniform: float = Field(0.1, ge=0)
    """The same for all, so that no prompt is given up."""
    keep: float = Field(0.8, ge=0, lt=1)
    """What older evidence about a prompt still counts, each time there is newer."""

    @model_validator(mode="after")
    def _fits(self) -> CurriculumConfig:
        if not self.success + self.divergence + self.staleness + self.uniform:
            raise ValueError("all weights are 0, so no prompt would be drawn; set success, divergence or uniform")
        return self


class RolloutConfig(Strict):
    policy: Literal["student", "teacher", "answers"] = "student"
    """Who writes the completions: the student (on-policy), the teacher, or the prompts' reference answers."""
    off_policy: float = Field(0.0, ge=0, le=1)
    """Chance that a batch is not the student's but of ``other``; GKD's λ is 1 less this."""
    off_policy_steps: int = Field(0, ge=0)
    """The first so many steps are not the student's but of ``other``."""
    other: Literal["teacher", "answers"] = "teacher"
    """Who writes the batches of ``off_policy`` and ``off_policy_steps``."""
    offline: int | None = Field(None, ge=1)
    """Roll out so many prompts once, before the first step, let the teacher score them once, and train on that."""
    batch: int = Field(64, ge=1)
    """Prompts per step."""
    curriculum: CurriculumConfig | None = None
    """Which prompts; by default each once per epoch, in random order."""
    samples: int = Field(1, ge=1)
    """Rollouts per prompt."""
    max_new_tokens: int = Field(256, ge=1)
    """The most tokens after the prompt, tool results included."""
    max_turns: int = Field(8, ge=1)
    """The most assistant turns, where there is an environment."""
    prefix: int = Field(0, ge=0)
    """The teacher writes the beginning of the first turn, up to so many tokens, a new number for every batch."""
    prefix_turns: int = Field(0, ge=0)
    """The teacher plays the first turns, up to so many, a new number for every batch; the last is the student's."""
    turns_grow_every: int | None = Field(None, ge=1)
    """Start with one turn and allow another after every so many steps, up to ``max_turns`` (TCOD)."""
    temperature: float = Field(1.0, ge=0)
    """Of sampling; 0 takes the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the likeliest tokens that make up this much of the distribution."""
    top_k: int = Field(0, ge=0)
    """0 keeps every token."""
    max_rows: int = Field(256, ge=1)
    """Sequences decoded at once."""

    @property
    def begun_by_teacher(self) -> str | None:
        """The key that lets the teacher begin, if one does."""
        return "prefix" if self.prefix else "prefix_turns" if self.prefix_turns else None

    @property
    def writers(self) -> set[str]:
        """Everyone who writes completions."""
        return {self.policy, self.other} if self.off_policy or self.off_policy_steps else {self.policy}

    @model_validator(mode="after")
    def _fits(self) -> RolloutConfig:
        if (self.off_policy or self.off_policy_steps) and self.policy != "student":
            key = "off_policy" if self.off_policy else "off_policy_steps"
            raise ValueError(f"{key} mixes the student's rollouts with others, and policy is {self.policy}")
        if self.prefix and self.prefix >= self.max_new_tokens:
            raise ValueError(
                f"prefix={self.prefix} has to leave the student a token of max_new_tokens={self.max_new_tokens}; "
                "lower it"
            )
        if self.offline and self.turns_grow_every:
            raise ValueError("offline makes its rollouts once, so turns_grow_every has nothing to grow; leave one out")
        if self.prefix and self.prefix_turns:
            raise ValueError("prefix begins a turn and prefix_turns plays whole ones; leave one of them out")
        if self.begun_by_teacher and self.policy != "student":
            raise ValueError(
                f"{self.begun_by_teacher} lets the student go on after a teacher, and policy is {self.policy}"
            )
        if self.offline and self.writers != {"student"}:
            raise ValueError("offline records the student's own rollouts; set policy=student, and no off_policy")
        if self.curriculum and self.offline:
            raise ValueError(
                "curriculum goes by how the student's answers change, and offline makes them once; leave one out"
            )
        if self.curriculum and "student" not in self.writers:
            raise ValueError(
                f"curriculum goes by the student's own rollouts, and policy is {self.policy}; set policy=student, or "
                "leave curriculum out"
            )
        return self
