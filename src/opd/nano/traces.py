"""What the nano models read while they are trained: endless conversations made by program.

The base model's mistakes are put in on purpose. ``HABIT`` says how often it calls an invented tool
when nothing reminds it of the listed ones; ``GIVE_UP`` how often an error ends the attempt.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

from opd.nano.tasks import math
from opd.nano.tasks.tools import Expression, ToolsTask, apply, make_prompt
from opd.nano.tokenizer import HABITS, TOOL_NAMES, vocabulary
from opd.types import Message, Prompt

HABIT = ({"add": 0.15, "sub": 0.6, "mul": 0.8}, {"add": 0.15, "sub": 0.4, "mul": 0.8})
"""Chance of an invented tool in the first and in the second step, by operation."""

FIRST_HABIT_SHARE = 0.85
"""Share of the first of the two names in ``HABITS``."""

GIVE_UP = 0.7
"""Chance to answer "unknown" after an error that no reminder follows."""

MAX_ATTEMPTS = 3
"""Calls for one step before the trace gives up."""

WRONG_DESPITE_REMINDER = 0.005
"""Chance of the habit with a reminder in the context: the teacher should be sure, but not infinitely so."""

UNTRAINED_MISTAKE = 0.12
"""Chance of a mistake that the model reads but is not trained to make, so that it knows how to go on."""

CUT_AFTER_CALL = 0.5
"""Chance that a transcript cut short ends in a call, whose fault only the list of tools can show."""

SLIPS = 0.25
"""Share of additions with slips in the working."""

REMINDERS = (
    "Reminder: available tools: {tools}.",
    "Reminder: available tools: {tools}.",
    "Reminder: this call is not valid: {error}. available tools: {tools}.",
    "Reminder: this call is not valid: {error}. available tools: {tools}.",
    "available tools: {tools}.",
    "Hint: available tools: {tools}.",
    "Hint: use only these tools: {tools}.",
    "there is no tool {tool}. use only: {tools}",
)

CRITIC_INSTRUCTION = "Find the faulty turns. Answer with one line per faulty turn, 'turn N: hint', or 'none'."
PRIVILEGED = "{question} Reference solution: {answer}."

WORD = re.compile(r"\d|[^\W\d]+|[^\w\s]")
"""One token of the nano tokenizer."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a trace. ``trained`` says whether the loss counts it, but for the tokens at ``skip``."""

    role: str
    text: str
    trained: bool = True
    skip: tuple[int, ...] = ()


Trace = list[Turn]
Source = Callable[[random.Random], Trace]


@cache
def _expressions() -> tuple[Expression, ...]:
    """Expressions of the training split; those of val and test are never trained on."""
    return tuple(Expression(*prompt.data["expression"]) for prompt in ToolsTask().prompts("train"))


def _question(prompt: Prompt) -> Trace:
    messages: tuple[Message, ...] = prompt.messages or ()
    return [Turn(message["role"], message["content"], trained=False) for message in messages]


class _Episode:
    """One conversation of the base model with the tools of one prompt."""

    def __init__(self, rng: random.Random, *, habits: bool, reminders: bool) -> None:
        self.rng = rng
        self.prompt = make_prompt(rng.choice(_expressions()), rng, "trace")
        self.tools: dict[str, str] = self.prompt.data["tools"]
        self.trace = _question(self.prompt)
        self.habits = habits
        self.reminded = False
        self.plan = rng.choices(("never", "start", "each"), (0.4, 0.15, 0.45))[0] if reminders else "never"

    def run(self) -> Trace:
        """Both steps and the answer, or as far as the attempts go."""
        a, first, b, second, c = Expression(*self.prompt.data["expression"])
        if self.plan == "start":
            self._remind(first, at=self.rng.choice((1, 2, 2, 2)))
        inner = self._step(0, first, a, b)
        result = None if inner is None else self._step(1, second, inner, c)
        if self.plan == "each" and result is not None and self.rng.random() < 0.3:
            self._remind(second, at=len(self.trace))
        self.trace.append(Turn("assistant", "answer unknown" if result is None else f"answer {result}"))
        return self.trace

    def _step(self, step: int, operation: str, a: int, b: int) -> int | None:
        """Call until a tool answers; None when the trace gives up."""
        for _ in range(MAX_ATTEMPTS):
            if self.plan == "each" and self.rng.random() < 0.4:
                self._remind(operation, at=len(self.trace))
            result = self._call(step, operation, a, b)
            if result is not None:
                return result
            if not self._goes_on():
                return None
        return None

    def _goes_on(self) -> bool:
        return not self.habits or self.reminded or self.rng.random() > GIVE_UP

    def _remind(self, operation: str, at: int) -> None:
        error = self.rng.choice(("no such tool", "no such tool", "bad arguments"))
        facts = {"tools": self.prompt.data["listing"], "error": error, "tool": HABITS[operation][0]}
        role = self.rng.choices(("user", "system"), (0.9, 0.1))[0]
        self.trace.insert(at, Turn(role, self.rng.choice(REMINDERS).format(**facts), trained=False))
        self.reminded = True

    def _call(self, step: int, operation: str, a: int, b: int) -> int | None:
        """One call and the environment's reaction; the result where the call is valid."""
        rng, name = self.rng, self.tools[operation]
        habit = HABITS[operation][0 if rng.random() < FIRST_HABIT_SHARE else 1]
        if self.habits and rng.random() < (WRONG_DESPITE_REMINDER if self.reminded else HABIT[step][operation]):
            return self._respond(Turn("assistant", f"call {habit} {a}, {b}"), "no such tool")
        if rng.random() >= UNTRAINED_MISTAKE:
            return self._respond(Turn("assistant", f"call {name} {a}, {b}"), apply(operation, a, b))
        mistake = rng.choices(("habit", "listed", "arguments"), (0.7, 0.15, 0.15))[0]
        if mistake == "habit":
            return self._respond(Turn("assistant", f"call {habit} {a}, {b}", skip=(1,)), "no such tool")
        if mistake == "arguments":
            return self._respond(Turn("assistant", f"call {name} {a}", trained=False), "bad arguments")
        other = rng.choice([o for o in self.tools if o != operation and (o != "sub" or a >= b)])
        return self._respond(Turn("assistant", f"call {self.tools[other]} {a}, {b}", skip=(1,)), apply(other, a, b))

    def _respond(self, call: Turn, result: int | str) -> int | None:
        failed = isinstance(result, str)
        text = f"error: {result}" if failed else str(result)
        self.trace += [call, Turn("tool", text, trained=False)]
        return None if isinstance(result, str) else result


def tools_trace(rng: random.Random, *, habits: bool = True, reminders: bool = True) -> Trace:
    """A conversation of ``tools-base``: with its habits, or as it would be without them."""
    return _Episode(rng, habits=habits, reminders=reminders).run()


@cache
def _held_out() -> frozenset[tuple[int, int]]:
    task = math.MathTask()
    pairs = [(p.data["a"], p.data["b"]) for split in ("val", "test") for p in task.prompts(split)]
    return frozenset(pairs) | frozenset((b, a) for a, b in pairs)


def math_trace(rng: random.Random, *, privileged: float = 0.0, long: float = 1.0) -> Trace:
    """An addition and its working, sometimes with slips that the model is trained to go on after.

    With chance ``privileged`` the solution stands in the question. ``long`` is the chance that a question
    without one may have numbers of four digits; otherwise they have two or three.
    """
    shown = rng.random() < privileged
    limit = 10_000 if shown or rng.random() < long else 1000
    pairs = iter(partial(math.draw, rng), None)
    a, b = next((a, b) for a, b in pairs if max(a, b) < limit and (a, b) not in _held_out())
    text, answer = math.question(a, b), math.working(a, b)
    if shown:
        text = PRIVILEGED.format(question=text, answer=answer)
    return [Turn("user", text, trained=False), _slipped(rng, answer)]


def _slipped(rng: random.Random, answer: str) -> Turn:
    """The answer, sometimes with wrong digits that the loss does not count.

    A teacher reads what the student wrote, mistakes included, and has to stay right after them.
    """
    if rng.random() >= SLIPS:
        return Turn("assistant", answer)
    words, rate = WORD.findall(answer), rng.uniform(0.02, 0.3)
    skip = tuple(i for i, word in enumerate(words) if word.isdecimal() and rng.random() < rate)
    for i in skip:
        words[i] = str(rng.randrange(10))
    return Turn("assistant", " ".join(words), skip=skip)


def decoded_math_trace(rng: random.Random) -> Trace:
    """An addition whose working is spaced as the word-level tokenizer decodes it.

    A teacher with another tokenizer reads the student's tokens as that text.
    """
    question, answer = math_trace(rng)
    return [question, replace(answer, text=" ".join(WORD.findall(answer.text)))]


def biased_math_trace(rng: random.Random) -> Trace:
    """An addition by someone who forgets every carry: fluent, sure, and wrong wherever there is one."""
    question, _ = math_trace(rng)
    a, b = map(int, question.text.split(" + "))
    return [question, _slipped(rng, without_carry(a, b))]


def without_carry(a: int, b: int) -> str:
    """The working of ``tasks.math.working`` with each carry forgotten."""
    steps, digits, x, y = [], "", a, b
    while x or y:
        digit = (x % 10 + y % 10) % 10
        steps.append(f"{x % 10} + {y % 10} + 0 = {digit} carry 0")
        digits, x, y = f"{digit}{digits}", x // 10, y // 10
    return "; ".join([*steps, f"answer {digits}"])


def copy_trace(rng: random.Random) -> Trace:
    """Random words, and the same again: the quickest way to the skill of copying from the context."""
    words = " ".join(rng.choices(vocabulary()[4:], k=rng.randint(4, 24)))
    return [Turn("user", words, trained=False), Turn("assistant", words)]


def critic_trace(rng: random.Random) -> Trace:
    """A transcript of an episode and the critic's verdict on it."""
    episode = _Episode(rng, habits=rng.random() < 0.7, reminders=False)
    messages = _spoiled(rng, episode)
    lines, faults, turn = ["Transcript:"], [], 0
    for message, following in zip(messages, [*messages[1:], None], strict=True):
        if message.role != "assistant":
            lines.append(f"{message.role}: {message.text}")
            continue
        turn += 1
        lines.append(f"turn {turn}: {message.text}")
        if following is not None and following.text.startswith("error"):
            faults.append(f"turn {turn}: Reminder: available tools: {episode.prompt.data['listing']}.")
    if lines[-1].startswith("tool") and rng.random() < CUT_AFTER_CALL:
        lines.pop()
    return [
        Turn("system", CRITIC_INSTRUCTION, trained=False),
        Turn("user", "\n".join(lines), trained=False),
        Turn("assistant", "\n".join(faults) or "none"),
    ]


def _spoiled(rng: random.Random, episode: _Episode) -> Trace:
    """The episode's messages, sometimes with failed or needless calls put in, sometimes cut before a turn."""
    messages = episode.run()
    starts = [i for i, message in enumerate(messages) if message.role == "assistant"]
    for _ in range(rng.choices((0, 1, 2, 3), (0.6, 0.25, 0.1, 0.05))[0]):
        at = rng.choice(starts)
        messages[at:at] = _failed_call(rng, list(episode.tools.values()))
    for _ in range(rng.choices((0, 1, 2), (0.7, 0.2, 0.1))[0]):
        at = rng.choice(starts)
        messages[at:at] = _needless_call(rng, list(episode.tools.values()))
    return messages[: rng.choice(starts[1:])] if len(starts) > 1 and rng.random() < 0.2 else messages


def _failed_call(rng: random.Random, tools: list[str]) -> Trace:
    a, b = rng.randrange(100), rng.randrange(10)
    if rng.random() < 0.3:
        return [Turn("assistant", f"call {rng.choice(tools)} {a}"), Turn("tool", "error: bad arguments")]
    invented = [name for names in HABITS.values() for name in names]
    name = rng.choice(invented if rng.random() < 0.7 else [n for n in TOOL_NAMES if n not in tools])
    return [Turn("assistant", f"call {name} {a}, {b}"), Turn("tool", "error: no such tool")]


def _needless_call(rng: random.Random, tools: list[str]) -> Trace:
    """A call that works and that nobody asked for: no fault of the kind the critic is to find."""
    call = f"call {rng.choice(tools)} {rng.randrange(100)}, {rng.randrange(10)}"
    return [Turn("assistant", call), Turn("tool", str(rng.randrange(1000)))]


def stream(source: Source, seed: int) -> Iterator[Trace]:
    """Endless traces; the same seed gives the same ones."""
    rng = random.Random(seed)
    while True:
        yield source(rng)
