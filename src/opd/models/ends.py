"""Where turns end: each model's own end tokens, those that the run file adds, and how models differ in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from opd.errors import ConfigError
from opd.models.chat import Chat
from opd.models.language import LanguageModel, stop_ids


@dataclass(frozen=True)
class Stops:
    """What ends a turn.

    Attributes:
        ids: the turn ends with one of these tokens.
        texts: the turn ends with the token that completes one of these.
    """

    ids: frozenset[int]
    texts: tuple[str, ...] = ()


def stops_of(language_model: LanguageModel, further: Sequence[str | int] = ()) -> Stops:
    """A model's own end tokens, and further ones in the ids of its tokenizer.

    Args:
        further: token ids, or texts. The text of one token adds that token; a text that is no special token also ends a
            turn wherever it appears in it.

    Raises:
        ConfigError: an id is none of the tokenizer's.
    """
    tokenizer = language_model.tokenizer
    ids, texts = set(stop_ids(language_model)), []
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for stop in further:
        if isinstance(stop, int):
            if not 0 <= stop < len(tokenizer):
                raise ConfigError(
                    f"rollout.stop: no token of '{language_model.source}' has the id {stop}. Fix: give an id from 0 to "
                    f"{len(tokenizer) - 1}, or a text"
                )
            ids.add(stop)
            continue
        found = tokenizer(stop, add_special_tokens=False)["input_ids"]
        ids |= set(found) if len(found) == 1 and found[0] != tokenizer.unk_token_id else set()
        if len(found) != 1 or found[0] not in special:
            texts.append(stop)
    return Stops(frozenset(ids), tuple(texts))


def differences(
    student: LanguageModel, teachers: Mapping[str, LanguageModel], further: Sequence[str | int] = ()
) -> Iterator[str]:
    """A sentence for each teacher of the student's tokenizer that ends turns with another token than the student.

    Args:
        teachers: by their keys in the run file.
        further: the run file's further stops.
    """
    ours, closes = stops_of(student, further).ids, _closing(student)
    settled = closes | (ours - stop_ids(student))
    for key, teacher in teachers.items():
        theirs, ends = stop_ids(teacher), _closing(teacher)
        names = [repr(student.tokenizer.decode([i])) for i in sorted(ends - ours)]
        if names:
            yield (
                f"{key} ends turns with {' or '.join(names)}, at which the student does not stop, so it learns to end "
                f"turns and writes on. Fix: set rollout.stop=[{','.join(names)}]"
            )
        elif closes and not settled & theirs:
            named = " or ".join(repr(student.tokenizer.decode([i])) for i in sorted(closes))
            yield (
                f"the student ends turns with {named}, which is no end for {key}, so the student may unlearn to stop. "
                "Fix: take a teacher with the same chat template, or give the student the teacher's"
            )


def _closing(language_model: LanguageModel) -> frozenset[int]:
    """The token that the chat template puts behind a turn, or without a template the tokens that end a text."""
    chat = Chat(language_model.tokenizer)
    return frozenset(chat.turn_end_ids[-1:]) if chat.has_template else stop_ids(language_model)
