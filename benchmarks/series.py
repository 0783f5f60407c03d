"""Several questions of ``tools`` in one conversation: many turns, few of them faulty; and a student with such faults.

    system     tools: add is blip, mul is frob, sub is zed
    user       ( 7 mul 3 ) add 5
    assistant  call frob 7, 3
    tool       21
    assistant  call blip 21, 5
    tool       26
    assistant  answer 26
    user       ( 2 add 4 ) sub 1
    …

The next question follows any answer, right or wrong. A conversation is right if every answer is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from opd.nano.tasks.tools import Expression, ToolsTask, apply, make_prompt
from opd.nano.tokenizer import HABITS
from opd.nano.traces import Trace, Turn
from opd.types import Message, Observation, Prompt

QUESTIONS = 4
"""Questions of a conversation: twelve turns if no call fails."""

SPLITS = {"test": 256, "val": 256, "train": 4096}

HABIT = {"add": 0.05, "sub": 0.15, "mul": 0.25}
"""The student's probability of an invented tool, by operation; a quarter to a third of that of ``nano/tools-base``."""

GIVE_UP = 0.7
"""Probability that an error ends the question, without a reminder."""

REMINDED = 0.6
"""Share of the student's training conversations with a reminder, above any turn alike. It holds for all later turns."""

UNTRAINED_MISTAKE = 0.05
"""Probability of an invented tool outside the loss, after which the student learns to continue."""

_SEED = 20_241_128
_TOOLS = ToolsTask()


class Series:
    """See the module's docstring. Events are those of ``tools``."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """Conversations about expressions of the same split of ``tools``."""
        return _splits()[split]

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        """Run a call; after an answer ask the next question, and after the last one judge all of them."""
        questions: Sequence[Prompt] = prompt.data["questions"]
        answers: list[bool] = []
        observed = Observation()
        for end, message in enumerate(transcript, 1):
            if message["role"] == "assistant":
                observed = _TOOLS.step(questions[len(answers)], transcript[:end])
                answers += [] if observed.message else [bool(observed.correct)]
        if observed.message:
            return observed
        if len(answers) == len(questions):
            return Observation(correct=all(answers))
        following = questions[len(answers)].messages
        assert following is not None
        return Observation(message=following[-1], correct=False)


@cache
def _splits() -> dict[str, tuple[Prompt, ...]]:
    rng = random.Random(_SEED)
    return {split: tuple(_conversation(split, rng, str(i)) for i in range(size)) for split, size in SPLITS.items()}


@cache
def _expressions(split: str) -> tuple[Expression, ...]:
    return tuple(Expression(*prompt.data["expression"]) for prompt in _TOOLS.prompts(split))


def _conversation(split: str, rng: random.Random, number: str) -> Prompt:
    """The prompt of the first question; all of them have its tools."""
    expressions = rng.sample(_expressions(split), QUESTIONS)
    questions = [make_prompt(e, rng, f"series/{split}/{number}") for e in expressions]
    tools = {key: questions[0].data[key] for key in ("tools", "listing")}
    questions = [replace(q, data={**q.data, **tools}) for q in questions]
    data = {**tools, "questions": questions}
    return replace(questions[0], answer=None, turns=None, domain="series", data=data)


def build(folder: Path, *, scale: float = 1.0) -> None:
    """Train the student from ``nano/tools-base``, a minute or two."""
    import opd
    from opd.nano.build import Plan, Stage, train

    base = opd.load_model("nano/tools-base")
    plan = Plan(hidden=96, layers=3, mlp=256, stages=(Stage(trace, 400),), lr=2e-3, batch=32, context_weight=0.05)
    train(plan, base.tokenizer, scale=scale, seed=0, start=base.model).save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)


def trace(rng: random.Random) -> Trace:
    """A conversation of the student with its habits."""
    prompt = _conversation("train", rng, "trace")
    start: Sequence[Message] = prompt.messages or ()
    turns = [Turn(message["role"], message["content"], trained=False) for message in start]
    reminder = rng.randrange(3 * QUESTIONS) if rng.random() < REMINDED else None
    talk = _Talk(rng, prompt, turns, reminder)
    for number, question in enumerate(prompt.data["questions"]):
        if number:
            talk.hear("user", question.messages[-1]["content"])
        a, first, b, second, c = Expression(*question.data["expression"])
        inner = talk.result(first, a, b)
        last = None if inner is None else talk.result(second, inner, c)
        talk.say(Turn("assistant", f"answer {'unknown' if last is None else last}"))
    return turns


class _Talk:
    """The student's turns in a conversation; a reminder stands above one of its calls."""

    def __init__(self, rng: random.Random, prompt: Prompt, turns: Trace, reminder: int | None) -> None:
        self.rng = rng
        self.tools: dict[str, str] = prompt.data["tools"]
        self.listing: str = prompt.data["listing"]
        self.turns = turns
        self.reminder = reminder
        self.reminded = False
        self.said = 0

    def say(self, turn: Turn) -> None:
        self.turns.append(turn)
        self.said += 1

    def hear(self, role: str, text: str) -> None:
        self.turns.append(Turn(role, text, trained=False))

    def result(self, operation: str, a: int, b: int) -> int | None:
        """The result of an operation, or None once the student gives up."""
        while True:
            if self.reminder is not None and self.said >= self.reminder and not self.reminded:
                self.hear("user", f"Reminder: available tools: {self.listing}.")
                self.reminded = True
            habit = 0.0 if self.reminded else HABIT[operation]
            drawn = self.rng.random()
            if drawn >= habit + UNTRAINED_MISTAKE:
                self.say(Turn("assistant", f"call {self.tools[operation]} {a}, {b}"))
                self.hear("tool", str(apply(operation, a, b)))
                return apply(operation, a, b)
            self.say(Turn("assistant", f"call {HABITS[operation][0]} {a}, {b}", skip=() if drawn < habit else (1,)))
            self.hear("tool", "error: no such tool")
            if not self.reminded and self.rng.random() < GIVE_UP:
                return None
