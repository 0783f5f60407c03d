"""Tasks for prompts without an environment: a checker of final answers, and one task per source."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from opd.errors import DataError
from opd.types import Message, Observation, Prompt, Task

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def final_answer(text: str) -> str:
    """The final answer of a solution: after the last ``####``, in the last ``\\boxed{}``, or its last number.

    A text without any of these is its own answer. Numbers lose thousands separators and trailing zeros.
    """
    if "####" in text:
        text = text.rsplit("####", 1)[1]
    elif boxed := _BOXED.findall(text):
        text = boxed[-1]
    numbers = _NUMBER.findall(text)
    if not numbers:
        return " ".join(text.lower().split()).strip(" .")
    number: str = numbers[-1].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


class AnswerTask:
    """One turn; reward 1.0 if its final answer equals the reference answer's, else 0.0; None without a reference."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """Refuse: this task has no prompts."""
        raise DataError(f"the answer checker has no prompts, so no split '{split}'. Fix: give prompts.path")

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        """Check the turn against ``prompt.answer``."""
        if prompt.answer is None:
            return Observation()
        right = final_answer(transcript[-1]["content"]) == final_answer(prompt.answer)
        return Observation(reward=float(right))


class EachItsOwn:
    """Prompts of several sources, each with its own environment and checker.

    Args:
        tasks: the task of each prompt id; a prompt without a task is not checked.
    """

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self.tasks = tasks

    def prompts(self, split: str) -> Sequence[Prompt]:
        """Refuse: this task has no prompts."""
        raise DataError(f"a mix has no prompts of its own, so no split '{split}'. Fix: call prompts() of its tasks")

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        """The reaction of the prompt's own task."""
        task = self.tasks.get(prompt.id)
        return task.step(prompt, transcript) if task else Observation()
