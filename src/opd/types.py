"""The contracts on one page: the data that flows through the loop, and the protocols that produce it.

    Prompt -> Rollout -> [Segment] -> Signal -> loss
    RolloutSource    View        Teacher   Objective

A run file names no object of these protocols but an ``opd.axes.base.AxisValue``, a mapping of settings whose
``build(run)`` makes the object. Your own derives from the base class of its axis, such as
``opd.axes.signals.base.SignalConfig`` or ``opd.axes.views.base.ViewConfig``, and is named as ``package.module:Name``.

Of language models, a teacher's signal is an ``opd.signals.FullSignal`` with ``hidden_TD`` and ``head_VD``, whose logits
are ``hidden_TD @ head_VD.T``; the student's states are ``opd.signals.TokenStates``, likewise.

Every dataclass is frozen. Nothing edits its input, except that each position's loss is filled in (``per_token_T``,
``Scored.loss_T``). Token ids are stored once, as they were sampled, and are never decoded and tokenised again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

from opd.positions import PerPosition

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Message = Mapping[str, Any]
"""One chat message: ``{"role": "user", "content": "..."}``, and any other field that the chat template reads.

``content`` is a string, a list of text parts, or None beside ``tool_calls``.
"""

Metrics = dict[str, float]
"""Values by name, as in a line of ``metrics.jsonl``."""


class Span(NamedTuple):
    """Half-open range of completion positions, ``completion_ids[start:stop]``."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question for the student, with its reference answer if there is one.

    Exactly one of ``messages`` (a chat) and ``text`` (plain text to continue) is set.

    Example:
        Prompt(id="math/test/0", messages=({"role": "user", "content": "3 + 4"},),
               answer="7", domain="math")
    """

    id: str
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    answer: str | None = None
    """Reference answer or worked solution, which a privileged teacher reads."""
    other_answers: tuple[str, ...] = ()
    """Further correct answers."""
    turns: tuple[str, ...] | None = None
    """Assistant turns of a worked solution with an environment's messages between them; None if ``answer`` is all."""
    domain: str = "default"
    data: Mapping[str, Any] = field(default_factory=dict)
    """Fields that the task needs to run its environment and check the answer."""
    tools: tuple[Mapping[str, Any], ...] | None = None
    """JSON schemas of the tools, which the chat template describes to the student; None for no tools."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the chat template, such as ``enable_thinking``."""

    @property
    def answers(self) -> tuple[str, ...]:
        """Every correct answer, ``answer`` first."""
        return self.other_answers if self.answer is None else (self.answer, *self.other_answers)


@dataclass(frozen=True, slots=True)
class Event:
    """An error or limit that the environment reported about one of the student's turns.

    Example:
        Event(kind="unknown_tool", turn=0, span=Span(0, 5),
              detail={"tool": "multiply", "tools": "add is blip, mul is frob"})
    """

    kind: str
    """``unknown_tool``, ``bad_arguments``, ``too_long``, or a task's own."""
    turn: int
    span: Span
    """Tokens of the fault; the whole turn if the environment names no place in it."""
    detail: Mapping[str, str] = field(default_factory=dict)
    """Named facts that a hint template may use."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one prompt: the tokens as sampled, and the tokens inserted between turns.

    Example: two turns around a tool result. The result's tokens are in ``completion_ids``, but the
    student did not generate them, so their mask is False and their logprob NaN.

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
    """Ended with a stop token, cut at ``max_new_tokens``, or cut at ``max_turns``."""
    events: tuple[Event, ...] = ()
    reward: float | None = None
    """The number that training compares within a prompt's rollouts; None if nothing gives one."""
    correct: bool | None = None
    """Whether the answer is right; None if nothing says so."""
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    """What each reward function, judge or task gave, by name; empty if the reward is 1 for right and 0 for wrong."""
    num_calls: int = 0
    """Number of tool calls in it, valid or not."""
    source: Literal["student", "teacher", "references"] = "student"
    """What generated it: the student, the teacher, or the prompts' reference answers."""
    transcript: tuple[Message, ...] = ()
    """The turns and the environment's messages as text, for hint authors and people; never tokenised again."""

    @property
    def num_tokens(self) -> int:
        """Number of generated tokens, without inserted ones."""
        return sum(self.completion_mask)


@dataclass(frozen=True, slots=True)
class Hint:
    """A hint about one faulty span of a rollout."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A scoring request: ``context_ids ++ completion_ids[span]`` of one rollout.

    The teacher scores exactly the stored completion ids of ``span``, with any context before them,
    so alignment holds by construction.
    """

    rollout: int
    """Index of the rollout in its batch."""
    context_ids: tuple[int, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Signal(PerPosition):
    """The student's tokens that a teacher has scored. Subclasses add the target. T positions.

    Attributes:
        rollout_T, position_T: int64 [T]; ``completion_ids[position]`` of that rollout in its batch.
        token_T: int64 [T]; the token the teacher scored, compared with the student's on every batch.
    """

    rollout_T: Tensor
    position_T: Tensor
    token_T: Tensor

    def __len__(self) -> int:
        return len(self.position_T)

    def to(self, device: torch.device) -> Self:
        """The same signal on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in values.items() if hasattr(value, "to")})


@dataclass(frozen=True, slots=True)
class States(PerPosition):
    """A model's outputs at T positions; each kind of model has its own subclass."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The environment's reaction to one assistant turn.

    ``message`` enters the rollout and the student continues; None ends the episode. The verdict is on the last
    observation. On an earlier one it is the verdict if the rollout is cut off there.
    """

    message: Message | None = None
    events: tuple[tuple[str, Mapping[str, str]], ...] = ()
    """(kind, detail) pairs; the rollout adds turn and span."""
    reward: float | None = None
    """Any finite number; None for 1 if the answer is correct and 0 if it is not."""
    correct: bool | None = None
    """Whether the answer is right; one that was cut off is wrong. None if there is only a reward."""
    num_calls: int = 0
    more: tuple[Message, ...] = ()
    """Messages right after ``message``, such as the results of further calls."""
    places: tuple[tuple[int, int] | None, ...] = ()
    """Of each event in order, the fault's range of characters in the turn's text, which becomes the span of its tokens;
    None, or none at all, for the whole turn."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages that enter the rollout; none if the episode ends."""
        return () if self.message is None else (self.message, *self.more)


class Task(Protocol):
    """Prompts with answers that a program can check, and their environment."""

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
        min_p: keep tokens with at least this share of the most likely one's probability; 0 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


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

    def sync(self) -> None:
        """Generate with the model's present weights from now on.

        Called before each batch of rollouts and of hints: an update, a rollback or a restored checkpoint may have
        changed the weights. An engine that reads the live parameters does nothing; one behind a server sends them.
        """
        ...


class RolloutSource(Protocol):
    """Generates rollouts: the student, the teacher, reference answers, a recording, or a mixture of these."""

    def rollout(self, prompts: Sequence[Prompt], seed: int, step: int = 0) -> Sequence[Rollout]:
        """One rollout per prompt, in order; the same seed, step and weights give the same tokens."""
        ...


class Policy(Protocol):
    """The student: the model that trains."""

    @property
    def model(self) -> Any:
        """The ``torch.nn.Module`` whose parameters train."""

    @property
    def device(self) -> torch.device: ...

    def train(self) -> None:
        """Prepare the model for forward passes with gradients."""

    def save(self, folder: Path) -> None:
        """Write a folder that the model's own library can load."""


class ForwardPass(Protocol):
    """The student's forward pass over its rollouts, with gradients."""

    def __call__(self, rollouts: Sequence[Rollout]) -> Iterator[tuple[Signal, States]]:
        """Yield the positions and the student's states there, micro-batch by micro-batch.

        Every generated token comes exactly once, a rollout's all in one micro-batch, ordered by rollout and position.
        Of several processes that share a run, one yields it.
        """
        ...


class HintAuthor(Protocol):
    """Finds mistakes in rollouts and writes a hint for each. It works on text, without tensors."""

    def hints(self, rollouts: Sequence[Rollout]) -> list[list[Hint]]:
        """One list per rollout, empty for a rollout without a mistake."""
        ...


class View(Protocol):
    """Chooses the context and the spans that a teacher scores."""

    def segments(self, rollouts: Sequence[Rollout]) -> list[Segment]:
        """The segments to score, each position at most once. Positions in no segment get no signal."""
        ...


class Teacher(Protocol):
    """Scores the student's own tokens."""

    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> Signal:
        """A target for every student-chosen position of every segment."""
        ...


class Objective(Protocol):
    """The distance between the student's states and a signal, whose gradient trains the student."""

    def __call__(self, student: States, signal: Signal, weight_T: Tensor, per_token_T: Tensor | None = None) -> Tensor:
        """The sum over positions of weight times distance, float32 []; gradients flow to the student's states.

        ``per_token_T``, float32 [T], receives each position's own loss, detached. Objectives that have no loss per
        position leave it unchanged.
        """
        ...


@dataclass(frozen=True)
class Term:
    """One term of the loss: a teacher, the view it scores through, a distance and a weight.

    Example:
        Term("anchor", "anchor", LocalTeacher(initial), PlainView(), FullVocabulary(beta=0.3), weight=0.1)

    Attributes:
        name: key in ``metrics.jsonl``, where ``NAME_share`` is the share of tokens the term trains on.
        role: ``distill`` and ``sft`` learn targets, ``reward`` learns from rewards, ``anchor`` holds the student near
            its initial weights and teaches nothing new.
        view: None for all of the student's tokens that no earlier term uses.
        weight: factor of the term in the loss; at 0 the term is off until a rollback raises it.
        token_weights: weights of the signal's positions, [T]; None for 1 everywhere.
        if_empty: the sentence's end if the whole run gives this term no target: the likely reason, and what to change.
    """

    name: str
    role: Literal["distill", "anchor", "reward", "sft"]
    teacher: Teacher
    view: View | None
    objective: Objective
    weight: float = 1.0
    token_weights: Callable[[Sequence[Rollout], Signal], Tensor] | None = None
    if_empty: str = "check teacher.view"


@dataclass(frozen=True)
class Scored:
    """A term's signal about one batch, without the positions of weight 0.

    Attributes:
        segments: the spans of the rollouts that the teacher scored.
        weight_T: float32 [T]; weights over the number of positions in the batch.
        loss_T: float32 [T]; each position's own loss, filled in by the update. NaN where the objective has none.
        count: number of positions in the whole batch, of all processes.
    """

    term: Term
    segments: Sequence[Segment]
    signal: Signal
    weight_T: Tensor
    loss_T: Tensor
    count: int
