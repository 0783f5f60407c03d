"""Two-step arithmetic through tool calls; the names of the tools differ in every prompt.

    system     tools: add is blip, mul is frob, sub is zed
    user       ( 7 mul 3 ) add 5
    assistant  call frob 7, 3
    tool       21
    assistant  call blip 21, 5
    tool       26
    assistant  answer 26

A call of a tool that is not listed returns an error, and the student may continue.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from opd.data.numbers import whole
from opd.nano.tasks.drawn import SPLITS, last_turn, pick
from opd.nano.tokenizer import TOOL_NAMES
from opd.types import Message, Observation, Prompt

OPERATIONS = ("add", "mul", "sub")
MAX_ARGUMENT_DIGITS = 4
"""Longer numbers are bad arguments, which keeps results short."""

_SEED = 20_240_601
_CALL = re.compile(r"call\b\s*(\w*)(.*)", re.DOTALL)
_ANSWER = re.compile(r"answer((?:\s*\d)+)")


class Expression(NamedTuple):
    """``(a first b) second c`` with one-digit operands; neither result is negative."""

    a: int
    first: str
    b: int
    second: str
    c: int

    @property
    def inner(self) -> int:
        return apply(self.first, self.a, self.b)

    @property
    def result(self) -> int:
        return apply(self.second, self.inner, self.c)


def apply(operation: str, a: int, b: int) -> int:
    """``a operation b``."""
    return {"add": a + b, "mul": a * b, "sub": a - b}[operation]


def make_prompt(expression: Expression, rng: random.Random, id: str) -> Prompt:
    """A prompt for ``expression`` with random tool names in random order."""
    operations = rng.sample(OPERATIONS, len(OPERATIONS))
    tools = dict(zip(operations, rng.sample(TOOL_NAMES, len(operations)), strict=True))
    listing = ", ".join(f"{operation} is {name}" for operation, name in tools.items())
    a, first, b, second, c = expression
    data = {"expression": tuple(expression), "tools": tools, "listing": listing, "result": expression.result}
    turns = reference_turns(expression, tools)
    return Prompt(
        id=id,
        messages=(
            {"role": "system", "content": f"tools: {listing}"},
            {"role": "user", "content": f"( {a} {first} {b} ) {second} {c}"},
        ),
        answer=f"{turns[0]} then {turns[1]}; {turns[2]}",
        turns=turns,
        domain="tools",
        data=data,
    )


def reference_turns(expression: Expression, tools: Mapping[str, str]) -> tuple[str, str, str]:
    """The three assistant turns that solve ``expression`` with these tools."""
    return (
        f"call {tools[expression.first]} {expression.a}, {expression.b}",
        f"call {tools[expression.second]} {expression.inner}, {expression.c}",
        f"answer {expression.result}",
    )


class ToolsTask:
    """See the module's docstring. Events: ``unknown_tool`` and ``bad_arguments``, one per failed call."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The prompts of ``train``, ``val`` or ``test``."""
        return pick("tools", _splits(), split)

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        """Run the call in the last message; without a call, check the answer."""
        text = last_turn(transcript)
        call = _CALL.match(text)
        if call is None:
            answer = _ANSWER.fullmatch(text)
            right = answer is not None and whole("".join(answer[1].split())) == prompt.data["result"]
            return Observation(correct=right)
        return _run(prompt, call[1], call[2])


def _run(prompt: Prompt, name: str, arguments: str) -> Observation:
    """The tool message for one call, with an event if the call failed."""
    operations = {tool: operation for operation, tool in prompt.data["tools"].items()}
    numbers = ["".join(part.split()) for part in arguments.split(",")]
    if name and name not in operations:
        return _failure(prompt, "unknown_tool", "no such tool", name)
    valid = len(numbers) == 2 and all(n.isdecimal() and len(n) <= MAX_ARGUMENT_DIGITS for n in numbers)
    if not (name and valid):
        return _failure(prompt, "bad_arguments", "bad arguments", name)
    result = apply(operations[name], int(numbers[0]), int(numbers[1]))
    return Observation(message={"role": "tool", "content": str(result)}, correct=False, num_calls=1)


def _failure(prompt: Prompt, kind: str, error: str, tool: str) -> Observation:
    detail = {"tool": tool, "error": error, "tools": prompt.data["listing"]}
    message = {"role": "tool", "content": f"error: {error}"}
    return Observation(message=message, events=((kind, detail),), correct=False, num_calls=1)


@cache
def _splits() -> dict[str, tuple[Prompt, ...]]:
    """All splits, drawn without replacement from one shuffled list of all expressions."""
    rng = random.Random(_SEED)
    expressions = _expressions()
    rng.shuffle(expressions)
    splits, start = {}, 0
    for split, size in SPLITS.items():
        chosen = expressions[start : start + size]
        splits[split] = tuple(make_prompt(e, rng, f"tools/{split}/{i}") for i, e in enumerate(chosen))
        start += size
    return splits


def _expressions() -> list[Expression]:
    every = (
        Expression(a, first, b, second, c)
        for a in range(10)
        for first in OPERATIONS
        for b in range(10)
        for second in OPERATIONS
        for c in range(10)
    )
    return [e for e in every if e.inner >= 0 and e.result >= 0]
