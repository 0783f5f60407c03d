"""Rewards by a judge: a model scores each answer, or ranks the answers to a prompt (RLAIF, arXiv 2309.00267)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from opd.rewards.verdicts import comparison, instruction, ranking, score
from opd.teachers.hints import transcript
from opd.types import Message, Rollout


class Asks(Protocol):
    """A model that answers conversations: a hint author's, local or behind an endpoint."""

    def answers(self, conversations: Sequence[tuple[Message, ...]]) -> Sequence[str | None]:
        """One answer each, in order; None where a conversation is too long."""
        ...


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A model with a rubric.

    Attributes:
        verdicts: the reward of each word that the judge may answer; None for a score.
        compare: rank all answers to a prompt in one request.
        see_answer: show the reference answer.
    """

    name: str
    asks: Asks
    rubric: str
    verdicts: Mapping[str, float] | None = None
    compare: bool = False
    see_answer: bool = False
    always: ClassVar[bool] = True

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """One reward per rollout; None where the judge's answer has no verdict.

        The same transcript is judged once in a batch, so equal answers have equal rewards.

        Raises:
            ModelError: the endpoint refuses, or does not answer after all attempts.
        """
        return self._ranked(rollouts) if self.compare else self._scored(rollouts)

    def _scored(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        asked = instruction(self.rubric, self.verdicts)
        conversations = [transcript(r, asked, see_answer=self.see_answer) for r in rollouts]
        keys = [conversation[-1]["content"] for conversation in conversations]
        different = dict(zip(keys, conversations, strict=True))
        said = dict(zip(different, self.asks.answers(list(different.values())), strict=True))
        return [None if (text := said[key]) is None else score(text, self.verdicts) for key in keys]

    def _ranked(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """By prompt; answers stand in an order that follows from their texts, so that none is always the first."""
        groups: dict[str, list[int]] = {}
        for n, rollout in enumerate(rollouts):
            groups.setdefault(rollout.prompt.id, []).append(n)
        texts = [_answer(rollout) for rollout in rollouts]
        shown = {id: sorted({texts[n] for n in members}, key=_order) for id, members in groups.items()}
        several = [id for id, answers in shown.items() if len(answers) > 1]
        asked = [self._comparison(rollouts[groups[id][0]], shown[id]) for id in several]
        said = dict(zip(several, self.asks.answers(asked), strict=True)) if asked else {}
        found: list[float | None] = [None] * len(rollouts)
        for id, members in groups.items():
            answers, text = shown[id], said.get(id)
            rewards = None if text is None else ranking(text, len(answers))
            for n in members:
                if len(members) > 1 and len(answers) == 1:
                    found[n] = 0.5  # equal answers need no judge
                elif rewards is not None:
                    found[n] = rewards[answers.index(texts[n])]
        return found

    def _comparison(self, rollout: Rollout, answers: Sequence[str]) -> tuple[Message, ...]:
        """The question with all different answers to it, numbered from 1."""
        unanswered = replace(rollout, transcript=())
        system, user = transcript(unanswered, comparison(self.rubric), see_answer=self.see_answer)
        numbered = "\n".join(f"Answer {number}:\n{answer}" for number, answer in enumerate(answers, 1))
        return system, {"role": "user", "content": f"{user['content']}\n{numbered}"}


def _answer(rollout: Rollout) -> str:
    """The part of the transcript that the rollout wrote."""
    whole, question = (transcript(r, "")[-1]["content"] for r in (rollout, replace(rollout, transcript=())))
    written: str = whole[len(question) :].strip()
    return written


def _order(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
