"""Views in which the teacher reads another prompt: context and feedback. Privileged is in test_views.py."""

import dataclasses

import pytest

from opd.axes.views.context import ContextView
from opd.axes.views.feedback import FeedbackView, attempt
from opd.errors import ConfigError, DataError, EmptyStepError
from opd.models.chat import Chat
from opd.teachers.experience import gather_experience
from opd.teachers.hints import RulesAuthor
from opd.types import Event, Message, Prompt, Rollout, Segment, Span
from support.tokenizers import make_tokenizer

CHAT = Chat(make_tokenizer())


def rollout(id: str, said: str, reward: float | None, *, heard: str | None = None) -> Rollout:
    prompt = Prompt(id=id, messages=({"role": "user", "content": "a b"},), data={"name": "k"})
    ids = CHAT.insert_text_ids(said)
    transcript: tuple[Message, ...] = ({"role": "assistant", "content": said},)
    if heard is not None:
        transcript += ({"role": "tool", "content": heard},)
    own = (True,) * len(ids), (-1.0,) * len(ids), (Span(0, len(ids)),)
    return Rollout(prompt, CHAT.prompt_ids(prompt), ids, *own, "stop", reward=reward, transcript=transcript)


def texts(segments: list[Segment]) -> dict[int, str]:
    return {s.rollout: CHAT.decode(s.context_ids) for s in segments}


FEEDBACK = FeedbackView(
    CHAT, template="{prompt}{solution}{feedback} .", solution=" c {solution}", environment=" d {feedback}"
)


def test_a_rollout_is_shown_another_success_of_its_prompt_and_never_its_own() -> None:
    group = [rollout("p", "e", 0.0), rollout("p", "f", 1.0), rollout("p", "g", 1.0), rollout("q", "h", 1.0)]
    assert texts(FEEDBACK.segments(group)) == {
        0: "user a b c f . assistant",
        1: "user a b c g . assistant",
        2: "user a b c f . assistant",
    }


def test_without_a_success_the_environment_speaks_and_without_that_nobody() -> None:
    group = [rollout("p", "e", 0.0, heard="i"), rollout("q", "f", 0.0), rollout("r", "g", 1.0, heard="i")]
    assert texts(FEEDBACK.segments(group)) == {0: "user a b d i . assistant"}
    silent = FeedbackView(CHAT, environment="")
    assert silent.segments(group) == []


def test_thoughts_are_left_out_and_turns_are_named() -> None:
    one = rollout("p", "<think>x\ny</think> f", 1.0)
    assert attempt(one) == "f"
    opened_in_the_prompt = dataclasses.replace(one, transcript=({"role": "assistant", "content": "hm\n</think>\n\nf"},))
    assert attempt(opened_in_the_prompt) == "f"
    assert attempt(rollout("p", "f", 1.0, heard="g")) == "assistant: f\ntool: g"


def test_a_context_is_filled_from_the_prompt_and_other_braces_stay() -> None:
    view = ContextView(CHAT, "c {name} {other} {", template="{context} : {prompt}")
    prompt = view.seen(rollout("p", "e", None).prompt)
    assert prompt.messages == ({"role": "user", "content": "c k {other} { : a b"},)
    chat = rollout("p", "e", None).prompt
    system = {"role": "system", "content": "c k"}
    assert ContextView(CHAT, "c {name}", role="system").seen(chat).messages == (system, *(chat.messages or ()))
    assert ContextView(CHAT, "c {name}", role="user").seen(chat).messages == (
        *(chat.messages or ()),
        {"role": "user", "content": "c k"},
    )
    instructed = dataclasses.replace(chat, messages=({"role": "system", "content": "d"}, *(chat.messages or ())))
    seen = ContextView(CHAT, "c", role="system").seen(instructed).messages or ()
    assert [m["content"] for m in seen] == ["c\n\nd", "a b"]
    with pytest.raises(DataError, match=r"teacher.view.role=user: prompt 'q' has no messages"):
        ContextView(CHAT, "c", role="user").seen(Prompt(id="q", text="a"))


@pytest.mark.parametrize("template", ["{prompt}", "{context} {answer}"])
def test_a_context_template_is_checked(template: str) -> None:
    with pytest.raises(ConfigError, match=r"teacher.view.template"):
        ContextView(CHAT, "c", template=template)


def test_experience_is_what_was_said_most_often() -> None:
    kinds = ["unknown_tool", "bad_arguments", "unknown_tool", "slow", "unknown_tool"]
    rollouts = [
        dataclasses.replace(rollout("p", "e", 0.0), events=(Event(kind, 0, Span(0, 1), {"tool": "x"}),))
        for kind in kinds
    ]
    author = RulesAuthor({"unknown_tool": "only {{listing}}", "bad_arguments": "count them", "slow": "no {tool}"})
    assert gather_experience(rollouts, author, items=8) == "only {listing}\ncount them\nno x"
    assert gather_experience(rollouts, author, items=1) == "only {listing}"
    with pytest.raises(EmptyStepError, match="no mistake in 1 rollouts"):
        gather_experience([rollout("p", "e", 1.0)], author, items=8)
