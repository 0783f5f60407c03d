"""A teacher with another tokenizer: it reads the text of the student's turns as tokens of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opd.losses import token_logprobs
from opd.models.chat import Chat
from opd.models.forward import Reading, collect
from opd.models.language import LanguageModel
from opd.signals import CrossSignal
from opd.teachers.alignment import Group, TokenTexts, groups
from opd.types import Rollout, Segment, Span


class _Turn(NamedTuple):
    """One turn of the student's as both sides read it."""

    rollout: int
    positions: list[int]
    """Completion positions of the student's tokens, special ones left out."""
    context_ids: tuple[int, ...]
    """The teacher's."""
    ids: tuple[int, ...]
    """The teacher's tokens of the turn."""
    groups: list[Group]
    opens: bool
    """Whether the turn begins a text of its own, as behind a chat template, and does not continue one."""


class CrossTeacher:
    """Scores the text of the student's turns, group by group.

    For a chat the teacher's context is its own template's rendering of the prompt and of what was said before the turn;
    for a plain text, the prompt's text. What the student wrote is decoded and encoded again for the teacher alone. A
    group is the shortest stretch that both read as whole tokens. Special tokens of either side, the end of the turn
    among them, belong to no group and get no signal. Neither does what follows a difference between the two texts (a
    tokenizer that changes letters or does not know one), nor what lies beyond the length that the teacher's model can
    hold. The share of the student's tokens that have a signal is in every step's metrics.

    Args:
        tokenizer: the student's.
        teacher: model and its own tokenizer.
        skip_ids: of the student's tokens, further ones to leave out, such as those that end a turn.
        max_tokens: most tokens per forward pass, padding included.
        temperature: divides the logits.

    Source: GOLD (Hugging Face TRL, experimental). tests/teachers/test_cross.py.
    """

    def __init__(
        self,
        tokenizer: Any,
        teacher: LanguageModel,
        *,
        skip_ids: frozenset[int] = frozenset(),
        max_tokens: int = 16_384,
        temperature: float = 1.0,
    ) -> None:
        self.student_texts = TokenTexts(tokenizer)
        self.student_chat = Chat(tokenizer)
        self.teacher_texts = TokenTexts(teacher.tokenizer)
        self.language_model = teacher
        self.chat = Chat(teacher.tokenizer)
        self.skip_ids = skip_ids | frozenset(tokenizer.all_special_ids)
        self.max_tokens = max_tokens
        self.temperature = temperature

    @torch.no_grad()
    def score(self, rollouts: Sequence[Rollout], segments: Sequence[Segment]) -> CrossSignal:
        """Read every turn that lies in a segment once; a segment's context is not used.

        Returns:
            A detached signal, ordered by rollout and position.
        """
        turns = [turn for segment in segments for turn in self._turns(rollouts, segment) if turn.groups]
        turns.sort(key=lambda turn: (turn.rollout, turn.positions[0]))
        device = self.language_model.device
        table = []
        for number, (turn, positions, opens) in enumerate(_numbered(turns)):
            ids = rollouts[turn.rollout].completion_ids
            table += [(turn.rollout, p, ids[p], number, len(positions), opens) for p in positions]
        columns = torch.tensor(table, dtype=torch.int64, device=device).reshape(-1, 6).unbind(1)
        rollout_T, position_T, token_T, group_T, size_T, opens_T = columns
        sizes = [group.teacher.stop - group.teacher.start for turn in turns for group in turn.groups]
        size_G = torch.tensor(sizes, dtype=torch.int64, device=device)
        hidden_GD, first_G, rest_G = self._read(turns, size_G)
        return CrossSignal(
            rollout_T=rollout_T,
            position_T=position_T,
            token_T=token_T,
            group_T=group_T,
            size_T=size_T,
            opens_T=opens_T > 0,
            teacher_hidden_TD=hidden_GD[group_T],
            teacher_token_T=first_G[group_T],
            teacher_size_T=size_G[group_T],
            teacher_rest_T=rest_G[group_T],
            head_VD=self.language_model.head_VD.detach(),
        )

    def _read(self, turns: Sequence[_Turn], size_G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The states that predict each group's first token, [G, D], that token, and the others' log-probability."""
        model = self.language_model
        readings = [self._reading(number, turn) for number, turn in enumerate(turns)]
        where, states = collect(model, readings, max_tokens=self.max_tokens)
        token_T, hidden_TD, head_VD = where.token_T, states.arrived().hidden_TD, states.head_VD
        group_T = torch.arange(len(size_G), device=model.device).repeat_interleave(size_G)
        later_T = torch.ones_like(group_T, dtype=torch.bool)
        later_T[size_G.cumsum(0) - size_G] = False
        logprobs_R = token_logprobs(hidden_TD[later_T], head_VD.to(hidden_TD.dtype), token_T[later_T], self.temperature)
        rest_G = logprobs_R.new_zeros(len(size_G)).index_add_(0, group_T[later_T], logprobs_R)
        return hidden_TD[~later_T], token_T[~later_T], rest_G

    def _reading(self, number: int, turn: _Turn) -> Reading:
        """The turn as the teacher reads it, up to its last group; groups follow each other without a gap."""
        wanted = list(range(turn.groups[-1].teacher.stop))
        return Reading(number, turn.context_ids + turn.ids[: len(wanted)], len(turn.context_ids), wanted)

    def _turns(self, rollouts: Sequence[Rollout], segment: Segment) -> Iterator[_Turn]:
        rollout = rollouts[segment.rollout]
        for number, span in enumerate(rollout.turns):
            if span.start >= segment.span.start and span.stop <= segment.span.stop:
                yield self._turn(segment.rollout, rollout, number)

    def _turn(self, index: int, rollout: Rollout, number: int) -> _Turn:
        """A turn's text, the teacher's tokens of it, and where they agree."""
        span, opens = rollout.turns[number], rollout.prompt.messages is not None
        written = rollout.completion_ids[span.start : span.stop]
        stop = span.start + len(self.student_chat.content_ids(written) if opens else written)
        positions = [p for p in range(span.start, stop) if rollout.completion_ids[p] not in self.skip_ids]
        before = () if opens else rollout.prompt_ids + rollout.completion_ids[: span.start]
        ours = list(self.student_texts.pieces([rollout.completion_ids[p] for p in positions], before))
        text = "".join(piece.text for piece in ours)
        context_ids = self._context(rollout, span)
        ids = self.chat.insert_text_ids(text) if opens else self._continuation(context_ids, text)
        theirs = self.teacher_texts.pieces(ids, () if opens else context_ids)
        room = (self.language_model.max_length or sys.maxsize) - len(context_ids)
        fitting = [group for group in groups(ours, list(theirs)) if group.teacher.stop <= room]
        return _Turn(index, positions, context_ids, ids, fitting, opens)

    def _context(self, rollout: Rollout, span: Span) -> tuple[int, ...]:
        if rollout.prompt.messages is None:
            written = self.student_texts.decode(rollout.completion_ids[: span.start])
            return self.chat.prompt_ids(replace(rollout.prompt, text=f"{rollout.prompt.text}{written}"))
        turn = rollout.turns.index(span)
        said = [i for i, message in enumerate(rollout.transcript) if message["role"] == "assistant"]
        messages = (*rollout.prompt.messages, *rollout.transcript[: said[turn] if turn else 0])
        return self.chat.prompt_ids(replace(rollout.prompt, messages=messages))

    def _continuation(self, context_ids: tuple[int, ...], text: str) -> tuple[int, ...]:
        """Tokens that go on with a text; some tokenizers put a space of their own in front of what they encode."""
        whole = self.teacher_texts.decode(context_ids) + text
        ways = [self.chat.insert_text_ids(t) for t in dict.fromkeys((text, text.removeprefix(" ")))]
        return next((ids for ids in ways if self.teacher_texts.decode(context_ids + ids) == whole), ways[0])


def _numbered(turns: Sequence[_Turn]) -> Iterator[tuple[_Turn, list[int], bool]]:
    """Every group in order: its turn, its completion positions, and whether it begins a text."""
    for turn in turns:
        for group in turn.groups:
            yield turn, turn.positions[slice(*group.student)], turn.opens and group.student.start == 0
