"""The contracts on one page: what flows through the loop, and who makes it.

    Prompt -> Rollout -> [Segment] -> Signal -> loss

Every dataclass is frozen; nothing edits its input. Token ids are stored once, as they were
sampled, and are never decoded and tokenised again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor

Message = Mapping[str, str]
"""One chat message: ``{"role": "user", "content": "..."}``."""


class Span(NamedTuple):
    """Half-open range of completion positions, ``completion_ids[start:stop]``."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question for the student, and what is known about its answer.

    Exactly one of ``messages`` (a chat) and ``text`` (plain text to continue) is set.

    Example:
        Prompt(id="math/test/0", messages=({"role": "user", "content": "3 + 4"},),
               answer="7", domain="math")
    """

    id: str
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    answer: str | None = None
    """Reference answer or worked solution; what a privileged teacher gets to see."""
    turns: tuple[str, ...] | None = None
    """The assistant turns of a worked solution, where an environment answers in between; None for ``answer`` alone."""
    domain: str = "default"
    data: Mapping[str, Any] = field(default_factory=dict)
    """Whatever the task needs to run its environment and check the answer."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something the environment noticed about one of the student's turns.

    Example:
        Event(kind="unknown_tool", turn=0, span=Span(0, 5),
              detail={"tool": "multiply", "tools": "add is blip, mul is frob"})
    """

    kind: str
    """``unknown_tool``, ``bad_arguments``, ``too_long``, or a task's own."""
    turn: int
    span: Span
    detail: Mapping[str, str] = field(default_factory=dict)
    """Named facts that a hint template may use."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the student did with one prompt: the tokens as sampled, and what was inserted between.

    Example: two turns around a tool result. The result's tokens stand in ``completion_ids`` but
    the student did not choose them, so their mask is False and their logprob NaN.

        completion_ids  = [call, f, 3, 4, END, TOOL, 7, END, ASSISTANT, seven, END]
        completion_mask = [   T, T, T, T,   T,    F, F,   F,         F,     T,   T]
        turns           = (Span(0, 5), Span(9, 11))
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    completion_mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    """Nats, under the distribution each token was drawn from; NaN where the mask is False."""
    turns: tuple[Span, ...]
    finish: Literal["stop", "length", "turns"]
    """Ended by itself, cut at ``max_new_tokens``, or cut at ``max_turns``."""
    events: tuple[Event, ...] = ()
    reward: float | None = None
    """1.0 right, 0.0 wrong, in between by the task's choice; None where there is no checker."""
    num_calls: int = 0
    """Tool calls the student made, valid or not."""
    source: Literal["student", "teacher", "references"] = "student"
    """What generated it: the student, the teacher, or the prompts' reference answers."""
    transcript: tuple[Message, ...] = ()
    """The turns and the environment's messages as text, for hint authors and people; never tokenised again."""

    @property
    def num_tokens(self) -> int:
        """Tokens the student chose."""
        return sum(self.completion_mask)


@dataclass(frozen=True, slots=True)
class Hint:
    """What a hint author says about one faulty span of a rollout."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Segment:
    """One reading task for the teacher: ``context_ids ++ completion_ids[span]`` of one rollout.

    The teacher scores exactly the stored completion ids of ``span``, whatever stands in the
    context, so alignment holds by construction.
    """

    rollout: int
    """Index of the rollout in its batch."""
    context_ids: tuple[int, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class PerPosition:
    """Something said at T positions; every field with T in its suffix has a row for each."""

    def take(self, rows: Tensor) -> Self:
        """The same at some of its rows, given as indices or as a mask."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if "_T" in f.name}
        return replace(self, **{name: value[rows] for name, value in values.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Signal(PerPosition):
    """Which of the student's tokens a teacher speaks about, and as which token it read them. T positions.

    Attributes:
        rollout_T, position_T: int64 [T]; ``completion_ids[position]`` of that rollout in its batch.
        token_T: int64 [T]; the token as it was read, compared with the student's own on every batch.
    """

    rollout_T: Tensor
    position_T: Tensor
    token_T: Tensor

    def __len__(self) -> int:
        return len(self.position_T)

    def to(self, device: torch.device) -> Self:
        """The same signal on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True, slots=True)
class TokenSignal(Signal):
    """The target is the token itself: supervised training."""


@dataclass(frozen=True, slots=True)
class FullSignal(Signal):
    """A full-vocabulary target without stored logits: softmax(hidden @ head.T). V tokens, D hidden units.

    Attributes:
        hidden_TD: [T, D] last hidden states, detached; row t predicts the token at ``position_T[t]``.
        head_VD: [V, D] the teacher's output head, detached.
    """

    hidden_TD: Tensor
    head_VD: Tensor


@dataclass(frozen=True, slots=True)
class ExpertsSignal(Signal):
    """What several teachers say, each about the rollouts of its own domains. K teachers.

    Attributes:
        row_TK: int64 [T, K]; the position's row in each teacher's part, −1 where that one says nothing.
        share_TK: float32 [T, K]; how much each has to say, adding to 1 at every position; 0 where it says nothing.
        parts: each teacher's own signal; positions taken out of the whole stay in them.
    """

    row_TK: Tensor
    share_TK: Tensor
    parts: tuple[FullSignal, ...]

    def part(self, k: int, rows: Tensor) -> FullSignal:
        """Teacher k about some of the positions at which it speaks, its head on the same device as its states."""
        part = self.parts[k].take(self.row_TK[rows, k])
        return replace(part, head_VD=part.head_VD.to(part.hidden_TD.device))

    def to(self, device: torch.device) -> ExpertsSignal:
        """The same signal on another device; heads stay where they are until they are used."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "parts"}
        parts = tuple(replace(p.to(device), head_VD=p.head_VD) for p in self.parts)
        return replace(self, **moved, parts=parts)


@dataclass(frozen=True, slots=True)
class SampledSignal(Signal):
    """What the teacher thinks of the one token that was drawn.

    Attributes:
        teacher_logprobs_T: float32 [T], nats, detached.
        rollout_logprobs_T: float32 [T], nats, under which the token was drawn.
        baseline_T: float32 [T], nats, taken off the advantage; 0 where there is none.
    """

    teacher_logprobs_T: Tensor
    rollout_logprobs_T: Tensor
    baseline_T: Tensor

    @property
    def log_ratio_T(self) -> Tensor:
        """log q(y) − log μ(y): in the mean minus the reverse KL."""
        return self.teacher_logprobs_T - self.rollout_logprobs_T

    @property
    def advantage_T(self) -> Tensor:
        """The log-ratio less its baseline."""
        return self.log_ratio_T - self.baseline_T


@dataclass(frozen=True, slots=True)
class AdvantageSignal(Signal):
    """How much better than its alternatives what the student did turned out.

    Attributes:
        advantage_T: float32 [T], detached.
        rollout_logprobs_T: float32 [T], nats, under which the token was drawn.
    """

    advantage_T: Tensor
    rollout_logprobs_T: Tensor


@dataclass(frozen=True, slots=True)
class HiddenSignal(Signal):
    """Hidden states that the student's are to resemble. K layers, D units.

    Attributes:
        layers_TKD: [T, K, D], detached; row t belongs to the state that predicts the token at ``position_T[t]``.
    """

    layers_TKD: Tensor


@dataclass(frozen=True, slots=True)
class States(PerPosition):
    """What a model computed at T positions; each kind of model has its own."""


@dataclass(frozen=True, slots=True)
class TokenStates(States):
    """What a language model computed at T positions, each about to predict a token.

    Attributes:
        hidden_TD: [T, D] last hidden states after the final norm: times the output head, the logits.
        head_VD: [V, D] the output head; the parameter itself where the model trains, so gradients reach it.
        layers_TKD: [T, K, D] states after K chosen blocks; None where none were asked for.
    """

    hidden_TD: Tensor
    head_VD: Tensor
    layers_TKD: Tensor | None = None


@dataclass(frozen=True, slots=True)
class CrossSignal(Signal):
    """What a teacher with another tokenizer thinks of stretches of text that both read as whole tokens.

    A row is a token of the student's in such a group; what is said of a group stands in each of its rows. D hidden
    units and V tokens of the teacher's.

    Attributes:
        group_T: int64 [T], which group; rows of a group follow each other.
        size_T: int64 [T], rows of the group as it was scored; fewer are left of it where positions were dropped.
        opens_T: bool [T], whether the group begins a text.
        teacher_hidden_TD: [T, D], detached; predicts the first of the teacher's tokens of the group.
        teacher_token_T: int64 [T], that first token.
        teacher_size_T: int64 [T], the teacher's tokens of the group.
        teacher_rest_T: float32 [T], nats, detached: the teacher's log-probability of its other tokens of the group.
        head_VD: [V, D] the teacher's output head, detached.
    """

    group_T: Tensor
    size_T: Tensor
    opens_T: Tensor
    teacher_hidden_TD: Tensor
    teacher_token_T: Tensor
    teacher_size_T: Tensor
    teacher_rest_T: Tensor
    head_VD: Tensor


@dataclass(frozen=True, slots=True)
class Observation:
    """The environment's reaction to one assistant turn.

    ``message`` enters the trajectory and the student goes on; None ends the episode. ``reward`` is
    set on the last observation where the task can check the answer.
    """

    message: Message | None = None
    events: tuple[tuple[str, Mapping[str, str]], ...] = ()
    """(kind, detail) pairs; the rollout adds turn and span."""
    reward: float | None = None
    num_calls: int = 0


class Task(Protocol):
    """Prompts with answers that a program can check, and the environment they live in."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """All prompts of a split, always in the same order."""
        ...

    def step(self, prompt: Prompt, transcript: Sequence[Message]) -> Observation:
        """React to the last message of ``transcript``, an assistant turn.

        A pure function: ``transcript`` holds every turn and tool message since the prompt, so the
        same trajectory always gets the same answer and a resumed run needs no environment state.
        """
        ...


class Generation(NamedTuple):
    """One engine answer: ids as sampled (the stop token included), their logprobs, and whether it stopped itself."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set with at least this probability; 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Engine(Protocol):
    """Generates tokens with one model. Ids in, ids out; nothing is decoded and tokenised again.

    Sampling, stop ids and seed belong to the call, so one engine serves training, evaluation and the report.
    """

    def generate(
        self,
        contexts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        *,
        sampling: Sampling,
        stop_ids: frozenset[int],
        seed: int,
    ) -> list[Generation]:
        """Continue each context. The same weights, arguments and seed give the same tokens.

        Args:
            contexts: token ids, at least one each.
            max_new_tokens: the largest number of tokens to add to each, at least 1.
            sampling: the distribution that tokens are drawn from.
            stop_ids: ids that end a generation; the stop token is part of it.
            seed: of the draws.

        Returns:
            One generation per context, in order. Log-probabilities are those of the distribution drawn from.
        """
        ...

    def sync(self, step: int) -> None:
        """Generate with the model's present weights from now on, labelled with ``step``.

        The caller calls it after every change of the weights: an optimizer step, a rollback, a restored checkpoint.
        An engine that reads the live parameters does nothing; an engine behind a server sends the weights.
        """
        ...


class RolloutSource(Protocol):
    """Makes rollouts: the student, the teacher, reference answers, a recording, or a mixture of these."""

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> Sequence[Rollout]:
        """One rollout per prompt, in order; the same seed, step and weights give the same tokens."""
        ...


class Policy(Protocol):
    """What is trained."""

    @property
    def model(self) -> Any:
        """The ``torch.nn.Module`` whose parameters move."""
        ...

    @property
    def device(self) -> torch.device: ...

    def save(self, folder: Path) -> None:
        """Leave it in a folder that the library it comes from can load."""
        ...


class Reader(Protocol):
    """Lets the student read its own rollouts."""

    def __call__(self, rollouts: Sequence[Rollout]) -> Iterator[tuple[Signal, States]]:
        """Which positions were read, and what the student computed there, with gradients; micro-batch by micro-batch.

        Every position that the student chose comes once, ordered by rollout and position.
        """
        ...


class HintAuthor(Protocol):
    """Reads trajectories, finds mistakes and writes a hint for each; knows no tensors."""

    def hints(self, rollouts: Sequence[Rollout]) -> list[list[Hint]]:
        """One list per rollout, empty where there is nothing to say."""
        ...


class View(Protocol):
    """How a teacher sees rollouts."""

    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        """What the teacher reads, no position twice. Positions in no segment carry no signal from it."""
        ...


class Teacher(Protocol):
    """Scores the student's own tokens."""

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> Signal:
        """A target for every student-chosen position of every segment."""
        ...
