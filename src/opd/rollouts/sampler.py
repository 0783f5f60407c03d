"""From prompts to rollouts: turns of an engine, with the environment's messages inserted between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

import torch

from opd.errors import DataError
from opd.models.chat import Chat
from opd.types import Engine, Event, Generation, Message, Prompt, Rollout, Sampling, Span, Task

ALL_TURNS = 2**31
"""A step at which a turn limit that grows has reached its end, for rollouts made outside the run of steps."""


@dataclass
class _Trajectory:
    """A rollout while it is being written."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    source: Literal["student", "teacher"]
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[Span] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    transcript: list[Message] = field(default_factory=list)
    finish: Literal["stop", "length", "turns"] | None = None
    reward: float | None = None
    num_calls: int = 0

    def add(self, ids: Sequence[int], logprobs: Sequence[float] | None) -> Span:
        """Append tokens: the student's own with their logprobs, or inserted ones (None)."""
        start = len(self.ids)
        self.ids += ids
        self.mask += [logprobs is not None] * len(ids)
        self.logprobs += logprobs if logprobs is not None else [math.nan] * len(ids)
        return Span(start, len(self.ids))

    def cut(self, finish: Literal["length", "turns"]) -> None:
        """End a trajectory that did not end by itself; what it would have answered counts as wrong."""
        self.finish = finish
        self.events.append(Event("too_long", len(self.turns) - 1, self.turns[-1], {"finish": finish}))

    def rollout(self) -> Rollout:
        assert self.finish is not None
        return Rollout(
            prompt=self.prompt,
            prompt_ids=self.prompt_ids,
            completion_ids=tuple(self.ids),
            completion_mask=tuple(self.mask),
            logprobs=tuple(self.logprobs),
            turns=tuple(self.turns),
            finish=self.finish,
            source=self.source,
            events=tuple(self.events),
            reward=self.reward,
            num_calls=self.num_calls,
            transcript=tuple(self.transcript),
        )


@dataclass(frozen=True)
class Prefix:
    """Another engine begins each trajectory: tokens of the first turn or whole turns, a number drawn for each batch.

    Attributes:
        engine: generates the beginning.
        sampling: how it draws tokens.
        tokens: the largest number of tokens of the first turn; its stop token is left to the student.
        turns: the largest number of turns; a turn that would end the trajectory is left to the student.

    Source: turns, ReOPD arXiv 2607.04763, where they are replayed and the student writes only the next one.
    """

    engine: Engine
    sampling: Sampling = field(default_factory=Sampling)
    tokens: int = 0
    turns: int = 0


@dataclass(frozen=True)
class Sampler:
    """Rolls out prompts, turn by turn in an environment if the task has one.

    Attributes:
        engine: generates tokens.
        chat: renders prompts and the environment's messages.
        task: reacts to each turn; None for prompts without an environment or a checker.
        sampling: how the engine draws tokens.
        stop_ids: ids that end a turn.
        max_new_tokens: the largest number of tokens after the prompt, inserted ones included.
        max_turns: the largest number of assistant turns.
        grow_every: start with one turn and allow one more after every n steps, up to ``max_turns`` (TCOD, arXiv
            2604.24005); None for ``max_turns`` from the start.
        prefix: another engine that begins each trajectory.
        source: whose engine it is.
        max_length: the largest number of tokens of prompt and completion together; None for no limit.
    """

    engine: Engine
    chat: Chat
    task: Task | None
    _: KW_ONLY
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int]
    max_new_tokens: int
    max_turns: int = 1
    grow_every: int | None = None
    prefix: Prefix | None = None
    source: Literal["student", "teacher"] = "student"
    max_length: int | None = None

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> list[Rollout]:
        """One rollout per prompt, in order; the same seed, step and weights give the same tokens.

        Raises:
            DataError: a prompt leaves no room for an answer.
        """
        trajectories = [_Trajectory(p, self._prompt_ids(p), self.source) for p in prompts]
        most = min(1 + step // self.grow_every, self.max_turns) if self.grow_every else self.max_turns
        if self.prefix:
            self._begin(trajectories, self.prefix, seed)
            self._lead(trajectories, self.prefix, most, seed)
        for turn in range(most):
            going_on = [t for t in trajectories if t.finish is None]
            if not going_on:
                break
            contexts = [(*t.prompt_ids, *t.ids) for t in going_on]
            budgets = [self.max_new_tokens - len(t.ids) for t in going_on]
            generations = self._generate(self.engine, self.sampling, contexts, budgets, seed * 1000 + turn)
            for trajectory, generation in zip(going_on, generations, strict=True):
                span = trajectory.add(generation.ids, list(generation.logprobs))
                trajectory.turns.append(span if trajectory.turns else Span(0, span.stop))
                self._react(trajectory, generation.stopped, last_turn=len(trajectory.turns) == most)
        return [t.rollout() for t in trajectories]

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise what ``rollout`` would raise for these prompts, without generating anything."""
        for prompt in prompts:
            self._prompt_ids(prompt)

    def _generate(
        self,
        engine: Engine,
        sampling: Sampling,
        contexts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        seed: int,
    ) -> list[Generation]:
        return engine.generate(contexts, max_new_tokens, sampling=sampling, stop_ids=self.stop_ids, seed=seed)

    def _begin(self, trajectories: Sequence[_Trajectory], prefix: Prefix, seed: int) -> None:
        """Let the other engine write the first tokens."""
        length = _drawn(prefix.tokens, seed)
        if not length:
            return
        budget = min(length, self.max_new_tokens - 1)
        written = self._generate(
            prefix.engine, prefix.sampling, [t.prompt_ids for t in trajectories], [budget] * len(trajectories), seed
        )
        for trajectory, generation in zip(trajectories, written, strict=True):
            trajectory.add(generation.ids[:-1] if generation.stopped else generation.ids, None)

    def _lead(self, trajectories: Sequence[_Trajectory], prefix: Prefix, most: int, seed: int) -> None:
        """Let the other engine play the first turns, in the environment; at least one is left to the student."""
        for turn in range(_drawn(min(prefix.turns, most - 1), seed)):
            budgets = [self.max_new_tokens - 1 - len(t.ids) for t in trajectories]
            contexts = [(*t.prompt_ids, *t.ids) for t in trajectories]
            written = self._generate(prefix.engine, prefix.sampling, contexts, budgets, seed * 1000 + turn)
            led = []
            for trajectory, generation in zip(trajectories, written, strict=True):
                if generation.stopped and self._goes_on(trajectory, generation.ids):
                    trajectory.turns.append(trajectory.add(generation.ids, None))
                    self._react(trajectory, stopped=True, last_turn=False)
                    led.append(trajectory)
            trajectories = led

    def _goes_on(self, trajectory: _Trajectory, ids: Sequence[int]) -> bool:
        """Whether the environment would answer such a turn, with room for more after it."""
        if self.task is None:
            return False
        turn = {"role": "assistant", "content": self.chat.turn_text(ids)}
        answer = self.task.step(trajectory.prompt, [*trajectory.transcript, turn]).message
        length = len(trajectory.ids) + len(ids)
        return answer is not None and length + len(self.chat.message_ids(answer, ids)) < self.max_new_tokens

    def _prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        ids = self.chat.prompt_ids(prompt)
        if self.max_length is not None and len(ids) + self.max_new_tokens > self.max_length:
            raise DataError(
                f"prompt '{prompt.id}' has {len(ids)} tokens, and with rollout.max_new_tokens="
                f"{self.max_new_tokens} exceeds the model's {self.max_length}; shorten one of the two"
            )
        return ids

    def _react(self, trajectory: _Trajectory, stopped: bool, *, last_turn: bool) -> None:
        """Let the environment answer the turn that was just written."""
        span = trajectory.turns[-1]
        ids = trajectory.ids[span.start : span.stop]
        text = self.chat.turn_text(ids)
        trajectory.transcript.append({"role": "assistant", "content": text})
        if self.task is None:
            trajectory.finish = "stop" if stopped else "length"
            return
        seen = self.task.step(trajectory.prompt, trajectory.transcript)
        if not stopped:  # the turn was cut in the middle, so what the task makes of it does not count
            unchecked = seen.message is None and seen.reward is None
            trajectory.reward = None if unchecked else 0.0
            trajectory.cut("length")
            return
        trajectory.num_calls += seen.num_calls
        trajectory.events += [Event(kind, len(trajectory.turns) - 1, span, d) for kind, d in seen.events]
        if seen.message is None:
            trajectory.finish, trajectory.reward = "stop", seen.reward
            return
        inserted = self.chat.message_ids(seen.message, ids)
        if last_turn or len(trajectory.ids) + len(inserted) >= self.max_new_tokens:
            trajectory.reward = 0.0
            trajectory.cut("turns" if last_turn else "length")
            return
        trajectory.transcript.append(seen.message)
        trajectory.add(inserted, None)


def _drawn(most: int, seed: int) -> int:
    """A number from 0 to ``most``."""
    return int(torch.randint(most + 1, (), generator=torch.Generator().manual_seed(seed)))
