"""The teacher reads the result of an attempt: a successful sibling, or the environment's messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from opd.axes.context import RunContext
from opd.axes.views.base import PromptView, ViewConfig, checked_template
from opd.data.thoughts import without_thoughts
from opd.types import Prompt, Rollout

if TYPE_CHECKING:
    from opd.models.chat import Chat

TEMPLATE = "{prompt}{solution}{feedback}\n\nNow give a correct answer to the question above."
SOLUTION = "\n\nA correct answer:\n\n{solution}"
ENVIRONMENT = "\n\nWhat came of an earlier attempt that failed:\n\n{feedback}"

SUCCESS = 1.0
"""Least reward of an attempt that counts as successful."""


class Feedback(ViewConfig):
    """A successful attempt at the same prompt, or the environment's messages (SDPO, arXiv 2601.20802)."""

    type: Literal["feedback"] = "feedback"
    template: str = TEMPLATE
    """The teacher's prompt, with {prompt}, {solution} and {feedback}."""
    solution: str = SOLUTION
    """The part about a successful attempt, with {solution}; an empty string leaves it out."""
    environment: str = ENVIRONMENT
    """The part about the environment's messages, with {feedback}; an empty string leaves it out."""

    report = "with feedback on an attempt in the prompt"
    compares = True
    if_empty = (
        "no prompt had a successful attempt to show the teacher. Fix: take easier prompts, or raise "
        "rollout.rollouts_per_prompt"
    )

    @model_validator(mode="after")
    def _something(self) -> Feedback:
        if not self.solution and not self.environment:
            raise ValueError("solution and environment are both empty, so the teacher sees nothing. Fix: give one")
        return self

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Rewards; and siblings where only they are shown."""
        siblings = () if self.environment else ("several attempts",)
        return {"": ("teacher pass", *siblings, "rewards")}

    def build(self, run: RunContext) -> FeedbackView:
        """The view."""
        return FeedbackView(run.chat, template=self.template, solution=self.solution, environment=self.environment)


class FeedbackView(PromptView):
    """The teacher's prompt holds another attempt that succeeded, or what the environment answered.

    The environment's messages are used where no other attempt succeeded. Rollouts with neither carry no signal.

    Args:
        chat: renders the teacher's prompt.
        template: replaces the last message, with {prompt}, {solution} and {feedback}.
        solution: the part about another attempt's {solution}; empty or None leaves it out.
        environment: the part about the environment's {feedback}; empty or None leaves it out.

    Raises:
        ConfigError: a part lacks its field or has an unknown one.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        template: str = TEMPLATE,
        solution: str | None = SOLUTION,
        environment: str | None = ENVIRONMENT,
    ) -> None:
        super().__init__(chat)
        self.template = checked_template(template, "template", needs="prompt", may="solution feedback")
        self.solution = solution and checked_template(solution, "solution", needs="solution")
        self.environment = environment and checked_template(environment, "environment", needs="feedback")

    def prompts(self, rollouts: Sequence[Rollout]) -> list[Prompt | None]:
        """Each prompt with the first other attempt that succeeded, or with the environment's messages."""
        successes: dict[str, list[int]] = {}
        for index, rollout in enumerate(rollouts):
            if rollout.correct or (rollout.correct is None and (rollout.reward or 0.0) >= SUCCESS):
                successes.setdefault(rollout.prompt.id, []).append(index)
        return [self._prompt(rollouts, i, successes.get(r.prompt.id, [])) for i, r in enumerate(rollouts)]

    def _prompt(self, rollouts: Sequence[Rollout], index: int, successes: Sequence[int]) -> Prompt | None:
        rollout = rollouts[index]
        others = [i for i in successes if i != index]
        if self.solution and others:
            text = self.solution.format(solution=attempt(rollouts[others[0]]))
            return self.shown(rollout.prompt, self.template, solution=text, feedback="")
        messages = [m["content"] for m in rollout.transcript if m["role"] != "assistant"]
        if self.environment and messages and index not in successes:
            text = self.environment.format(feedback="\n".join(messages))
            return self.shown(rollout.prompt, self.template, solution="", feedback=text)
        return None


def attempt(rollout: Rollout) -> str:
    """The student's text without its thoughts; several turns are shown with their roles."""
    if len(rollout.transcript) == 1:
        return without_thoughts(rollout.transcript[0]["content"])
    lines = (f"{m['role']}: {without_thoughts(m['content'])}" for m in rollout.transcript)
    return "\n".join(lines)
