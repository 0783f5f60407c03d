"""The prompts' reference answers as rollouts, for supervised training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from opd.data.tasks import observe
from opd.errors import DataError
from opd.models.chat import Chat
from opd.rewards.reactions import verdict
from opd.types import Message, Observation, Prompt, Rollout, RolloutSource, Span, Task


class ReferenceAnswers:
    """Gives each prompt's worked solution in the form of a rollout, turn by turn if an environment answers.

    Each turn ends with the template's turn end, or with EOS for a plain text; see ``Chat.end_ids``.

    Args:
        chat: renders prompts and encodes answers.
        task: the environment; None if prompts have none.
        max_length: largest number of tokens of prompt and solution together; None for no limit.
    """

    def __init__(self, chat: Chat, task: Task | None, *, max_length: int | None) -> None:
        self.chat = chat
        self.task = task
        self.max_length = max_length

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Rollout]:
        """One rollout per prompt; seed and step have no effect."""
        return [self._rollout(prompt) for prompt in prompts]

    def _rollout(self, prompt: Prompt) -> Rollout:
        chat = self.chat.of(prompt)
        prompt_ids, end = chat.prompt_ids(prompt), chat.end_ids(prompt)
        ids: list[int] = []
        start = 0
        turns: list[Span] = []
        transcript: list[Message] = []
        seen = Observation()
        for text in prompt.turns or (prompt.answer or "",):
            if transcript and not seen.messages:
                raise DataError(
                    f"prompt '{prompt.id}': its environment ends before turn {len(turns) + 1} of 'turns'. Fix: shorten "
                    "'turns'"
                )
            if seen.messages:
                transcript += seen.messages
                ids += chat.message_ids(seen.messages, ids[start:])
            start = len(ids)
            ids += (*chat.insert_text_ids(text), *end)
            turns.append(Span(start, len(ids)))
            transcript.append({"role": "assistant", "content": text})
            seen = observe(self.task, prompt, transcript) if self.task else Observation()
        if self.max_length is not None and len(prompt_ids) + len(ids) > self.max_length:
            raise DataError(
                f"prompt '{prompt.id}' and its answer have {len(prompt_ids) + len(ids)} tokens, more than the model's "
                f"{self.max_length}. Fix: shorten or drop the prompt"
            )
        judged = verdict(seen)
        written = {p for turn in turns for p in range(*turn)}
        return Rollout(
            prompt=prompt,
            prompt_ids=prompt_ids,
            completion_ids=tuple(ids),
            completion_mask=tuple(p in written for p in range(len(ids))),
            logprobs=(math.nan,) * len(ids),  # not sampled
            turns=tuple(turns),
            finish="stop",
            reward=judged.reward,
            correct=judged.correct,
            rewards=judged.rewards,
            source="references",
            transcript=tuple(transcript),
        )


class WithAnswers:
    """The student's rollouts, followed by the reference answer to each different prompt.

    Args:
        student: the source of on-policy rollouts.
        answers: the reference answers, for the SFT term.
    """

    def __init__(self, student: RolloutSource, answers: ReferenceAnswers) -> None:
        self.student = student
        self.answers = answers

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Rollout]:
        """One rollout per prompt, in order, then one reference answer per different prompt."""
        different = {prompt.id: prompt for prompt in prompts}
        own = self.student.rollout(prompts, seed, step)
        return [*own, *self.answers.rollout(list(different.values()), seed, step)]
