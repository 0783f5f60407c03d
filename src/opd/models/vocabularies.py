"""Vocabularies of a student and its teachers: the same but for added tokens, which neither is then asked about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from opd.errors import DataError, ModelError
from opd.models.chat import Chat
from opd.models.language import LanguageModel, stop_ids
from opd.types import Prompt


@dataclass(frozen=True)
class Shared:
    """What two tokenizers have in common.

    Attributes:
        rows: number of ids, from 0, that stand for the same token in both.
        ours, theirs: added tokens behind them, which only the student or only the teacher has.
    """

    rows: int
    ours: tuple[str, ...] = ()
    theirs: tuple[str, ...] = ()


def shared_vocabulary(student: Any, teacher: Any, *, key: str) -> Shared:
    """Compare two tokenizers by content: all ids up to the first difference, behind which only added tokens may follow.

    Args:
        student, teacher: tokenizers.
        key: the run file's key that named the teacher.

    Raises:
        ModelError: a token that is not an added one has another id; the sentence names the first difference.
    """
    ours, theirs = ({i: token for token, i in t.get_vocab().items()} for t in (student, teacher))
    rows = next((i for i in sorted(ours.keys() | theirs.keys()) if ours.get(i) != theirs.get(i)), max(ours) + 1)
    ours, theirs = ({i: side[i] for i in sorted(side) if i >= rows} for side in (ours, theirs))
    added = student.get_added_vocab().keys() | teacher.get_added_vocab().keys()
    if not {*ours.values(), *theirs.values()} <= added:
        raise ModelError(
            f"{key}: the teacher's vocabulary is not the student's ({len(teacher.get_vocab())} and "
            f"{len(student.get_vocab())} tokens; the first difference is {ours.get(rows, theirs.get(rows))!r} with id "
            f"{rows}), so their distributions cannot be compared token by token. Fix: take a teacher with the same "
            "tokenizer, or set loss.signal=other_tokenizer"
        )
    return Shared(rows, tuple(ours.values()), tuple(theirs.values()))


def shared_rows(student: LanguageModel, teacher: LanguageModel, *, key: str) -> Shared:
    """What student and teacher share, with a row of the output head for each id.

    Raises:
        ModelError: the tokenizers differ by more than added tokens; a head has too few rows; the student ends turns
            with tokens that the teacher does not have.
    """
    shared = shared_vocabulary(student.tokenizer, teacher.tokenizer, key=key)
    if min(student.rows, teacher.rows) < shared.rows:
        raise ModelError(
            f"{key}: the tokenizer has ids up to {shared.rows - 1}, but an output head has only "
            f"{min(student.rows, teacher.rows)} rows. Fix: take a model whose head covers its tokenizer"
        )
    end = min(stop_ids(student), default=0)
    if end >= shared.rows:
        raise ModelError(
            f"{key}: the student ends its turns with {student.tokenizer.convert_ids_to_tokens(end)!r}, and the teacher "
            "has no such token. Fix: take a teacher with the same tokenizer, or set loss.signal=other_tokenizer"
        )
    return shared


def within(model: LanguageModel, shared: Shared) -> LanguageModel:
    """The model with its vocabulary cut to the shared ids."""
    return replace(model, limit=shared.rows)


def note_of(key: str, shared: Shared) -> str | None:
    """A sentence about the tokens that are left out; None if there are none."""
    sides = [(shared.ours, "the student"), (shared.theirs, "the teacher")]
    parts = [f"{len(tokens)} that only {who} has ({_listed(tokens)})" for tokens, who in sides if tokens]
    if not parts:
        return None
    return f"{key}: {shared.rows} shared tokens are compared and sampled, without {' and '.join(parts)}"


def check_prompts(prompts: Iterable[Prompt], chat: Chat, shared: Shared, *, key: str) -> None:
    """No prompt has a token that the teacher does not have.

    Raises:
        DataError: one has.
    """
    fix = "take it out of the prompt or the chat template, or set loss.signal=other_tokenizer"
    _refuse_from(shared.rows, prompts, chat, key=key, fault=f"which the teacher does not have. Fix: {fix}")


def check_readable(model: LanguageModel, prompts: Iterable[Prompt], *, key: str) -> None:
    """No prompt has an added token that the model has no row for.

    Raises:
        DataError: one has.
    """
    if max(model.tokenizer.get_vocab().values()) < model.known_ids:
        return
    fault = (
        f"for which '{model.source}' has no row. Fix: call model.resize_token_embeddings(len(tokenizer)), or take it "
        "out of the prompt or the chat template"
    )
    _refuse_from(model.known_ids, prompts, Chat(model.tokenizer), key=key, fault=fault)


def _refuse_from(rows: int, prompts: Iterable[Prompt], chat: Chat, *, key: str, fault: str) -> None:
    for prompt in prompts:
        unknown = next((i for i in chat.prompt_ids(prompt) if i >= rows), None)
        if unknown is not None:
            token = chat.tokenizer.convert_ids_to_tokens(unknown)
            raise DataError(f"{key}: prompt '{prompt.id}' has the token {token!r}, {fault}")


def _listed(tokens: Iterable[str]) -> str:
    first, *rest = map(repr, tokens)
    return ", ".join([first, *rest[:2], *(["…"] if len(rest) > 2 else [])])
