"""Rollouts that nobody sampled: the prompts' own reference answers, for supervised training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from opd.chat import Chat
from opd.errors import DataError
from opd.types import Prompt, Roller, Rollout, Span


class ReferenceAnswers:
    """Gives each prompt's reference answer as if it had been sampled.

    Args:
        chat: renders prompts and encodes answers.
        stop: id that ends an answer.
        max_length: the most tokens prompt and answer may have together; None for no limit.
    """

    def __init__(self, chat: Chat, *, stop: int, max_length: int | None) -> None:
        self.chat = chat
        self.stop = stop
        self.max_length = max_length

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Rollout]:
        """One rollout per prompt; nothing is drawn, so seed and step change nothing."""
        return [self._rollout(prompt) for prompt in prompts]

    def _rollout(self, prompt: Prompt) -> Rollout:
        prompt_ids = self.chat.prompt_ids(prompt)
        ids = (*self.chat.insert_text_ids(prompt.answer or ""), self.stop)
        if self.max_length is not None and len(prompt_ids) + len(ids) > self.max_length:
            raise DataError(
                f"prompt '{prompt.id}' and its answer have {len(prompt_ids) + len(ids)} tokens, more than the model's "
                f"{self.max_length}; shorten or drop it"
            )
        return Rollout(
            prompt=prompt,
            prompt_ids=prompt_ids,
            completion_ids=ids,
            completion_mask=(True,) * len(ids),
            logprobs=(math.nan,) * len(ids),  # nobody drew them
            turns=(Span(0, len(ids)),),
            finish="stop",
            writer="answers",
        )


class WithAnswers:
    """The student's rollouts, and behind them the reference answers to the same prompts, each once.

    Args:
        student: on-policy rollouts.
        answers: what the mixed-in supervised loss is about.
    """

    def __init__(self, student: Roller, answers: ReferenceAnswers) -> None:
        self.student = student
        self.answers = answers

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Rollout]:
        """One rollout per prompt, in order, then one answer per different prompt."""
        different = {prompt.id: prompt for prompt in prompts}
        return self.student.rollout(prompts, seed, step) + self.answers.rollout(list(different.values()), seed, step)
