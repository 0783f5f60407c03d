"""Views: what the teacher reads, and that the completion's ids are the stored ones."""

from collections.abc import Sequence

import pytest

from opd.axes.views.hint import HintView, apart
from opd.axes.views.plain import PlainView
from opd.axes.views.privileged import PrivilegedView
from opd.errors import ConfigError, DataError
from opd.models.chat import Chat
from opd.teachers.views import remaining
from opd.types import Hint, Prompt, Rollout, Segment, Span
from support.tokenizers import make_tokenizer

CHAT = Chat(make_tokenizer())
END = (CHAT.tokenizer.eos_token_id,)


def two_turns() -> Rollout:
    prompt = Prompt(id="p", messages=({"role": "user", "content": "a b"},), answer="c")
    first, second = CHAT.insert_text_ids("d e") + END, CHAT.insert_text_ids("f") + END
    between = CHAT.message_ids({"role": "tool", "content": "g"}, first)
    ids = first + between + second
    mask = (True,) * len(first) + (False,) * len(between) + (True,) * len(second)
    turns = (Span(0, len(first)), Span(len(first) + len(between), len(ids)))
    return Rollout(prompt, CHAT.prompt_ids(prompt), ids, mask, (0.0,) * len(ids), turns, "stop")


class Says:
    """An author with fixed answers."""

    def __init__(self, *hints: Hint) -> None:
        self.answers = list(hints)

    def hints(self, rollouts: Sequence[Rollout]) -> list[list[Hint]]:
        return [self.answers for _ in rollouts]


def text(segment: Segment) -> str:
    return CHAT.decode(segment.context_ids)


def test_plain() -> None:
    r = two_turns()
    assert PlainView().segments([r]) == [Segment(0, r.prompt_ids, Span(0, len(r.completion_ids)))]


def test_privileged_puts_the_answer_into_the_last_user_message() -> None:
    segment = PrivilegedView(CHAT, template="{prompt} : {answer}").segments([two_turns()])[0]
    assert text(segment) == "user a b : c assistant"
    assert segment.span == Span(0, len(two_turns().completion_ids))


def test_privileged_refuses_a_missing_answer_and_a_wrong_template() -> None:
    view = PrivilegedView(CHAT)
    with pytest.raises(DataError, match="prompt 'q' has no answer"):
        view.seen(Prompt(id="q", text="a"))
    with pytest.raises(ConfigError, match="lacks {answer}"):
        PrivilegedView(CHAT, template="{prompt}")
    with pytest.raises(ConfigError, match="unknown field .'solution'.*use only {answer} and {prompt}"):
        PrivilegedView(CHAT, template="{prompt} {solution}")


def test_privileged_on_plain_text() -> None:
    prompt = PrivilegedView(CHAT, template="{answer} {prompt}").seen(Prompt(id="q", text="a", answer="b"))
    assert prompt.text == "b a"


def test_a_hint_right_above_its_turn() -> None:
    r = two_turns()
    segment = HintView(Says(Hint(r.turns[1], "reminder : h")), CHAT).segments([r])[0]
    assert segment.span == r.turns[1]
    assert text(segment) == "user a b assistant d e tool g user reminder : h assistant"
    history = r.prompt_ids + r.completion_ids[: r.turns[1].start]
    kept = len(history) - len(CHAT.generation_ids)
    assert segment.context_ids[:kept] == history[:kept]


def test_a_hint_at_the_start_keeps_the_stored_history() -> None:
    r = two_turns()
    segment = HintView(Says(Hint(r.turns[1], "h")), CHAT, place="start").segments([r])[0]
    assert text(segment) == "user a b user h assistant d e tool g assistant"
    assert segment.context_ids[-r.turns[1].start :] == r.completion_ids[: r.turns[1].start]


def test_several_hints_are_separate_readings_and_can_be_limited() -> None:
    r = two_turns()
    author = Says(Hint(r.turns[1], "h"), Hint(r.turns[0], "i"), Hint(r.turns[0], "j"))
    view = HintView(author, CHAT)
    first, second = view.segments([r])
    assert (text(first), first.span) == ("user a b user i j assistant", r.turns[0])
    assert text(second) == "user a b assistant d e tool g user h assistant"
    assert [len(h) for h in view.last_hints] == [2]
    assert len(HintView(author, CHAT, max_hints=1).segments([r])) == 1


def test_no_token_gets_two_targets() -> None:
    hints = [Hint(Span(4, 8), "b"), Hint(Span(0, 5), "a"), Hint(Span(8, 9), "c"), Hint(Span(0, 5), "a")]
    assert apart(hints) == [Hint(Span(0, 5), "a"), Hint(Span(8, 9), "c")]


def test_what_remains_is_every_other_token_of_the_students() -> None:
    r = two_turns()
    hinted = HintView(Says(Hint(r.turns[0], "h")), CHAT).segments([r])
    rest = remaining([r, r], hinted)
    assert [(s.rollout, s.span) for s in rest] == [(0, r.turns[1]), (1, r.turns[0]), (1, r.turns[1])]
    for segment in rest:
        assert segment.context_ids == r.prompt_ids + r.completion_ids[: segment.span.start]
