"""The tools environment: the reaction to each kind of turn, and disjoint splits."""

from __future__ import annotations

import pytest

from opd.errors import ConfigError
from opd.nano.tasks.drawn import SPLITS
from opd.nano.tasks.tools import Expression, ToolsTask, reference_turns
from opd.types import Message, Observation, Prompt

TASK = ToolsTask()
PROMPT = Prompt(
    id="t",
    messages=({"role": "user", "content": "( 7 mul 3 ) add 5"},),
    data={
        "expression": (7, "mul", 3, "add", 5),
        "tools": {"add": "blip", "mul": "frob", "sub": "zed"},
        "listing": "add is blip, mul is frob, sub is zed",
        "result": 26,
    },
)


def say(text: str, prompt: Prompt = PROMPT) -> Observation:
    return TASK.step(prompt, [{"role": "assistant", "content": text}])


@pytest.mark.parametrize("text", ["call frob 7, 3", "call frob 7 , 3", " Call FROB 7,3<|im_end|>"])
def test_a_valid_call_returns_the_result_with_any_spacing(text: str) -> None:
    assert say(text) == Observation(message={"role": "tool", "content": "21"}, correct=False, num_calls=1)


def test_separate_digits_are_one_number() -> None:
    assert say("call blip 2 1 , 5").message == {"role": "tool", "content": "26"}


def test_the_environment_runs_the_call_even_if_it_is_not_the_expected_one() -> None:
    assert say("call zed 3, 9").message == {"role": "tool", "content": "-6"}


def test_an_unlisted_tool_is_an_error_and_an_event_with_the_listed_tools() -> None:
    seen = say("call multiply 7, 3")
    assert seen.message == {"role": "tool", "content": "error: no such tool"}
    detail = {"tool": "multiply", "error": "no such tool", "tools": "add is blip, mul is frob, sub is zed"}
    assert seen.events == (("unknown_tool", detail),)
    assert (seen.num_calls, seen.correct) == (1, False)


@pytest.mark.parametrize("arguments", ["", "7", "7 3", "7, 3, 1", "7, x", ", 3", "7, -3", "12345, 1"])
def test_bad_arguments_are_an_error_and_an_event(arguments: str) -> None:
    seen = say(f"call frob {arguments}")
    assert seen.message == {"role": "tool", "content": "error: bad arguments"}
    ((kind, detail),) = seen.events
    assert kind == "bad_arguments"
    assert detail["error"] == "bad arguments"
    assert detail["tools"] == "add is blip, mul is frob, sub is zed"


def test_a_call_without_a_tool_is_bad_arguments() -> None:
    assert say("call").events[0][0] == "bad_arguments"


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("answer 2 6", 1.0),
        ("answer 26<|im_end|>", 1.0),
        ("answer 62", 0.0),
        (f"answer {'9' * 5000}", 0.0),
        ("answer", 0.0),
        ("answer unknown", 0.0),
        ("answer 26 call frob", 0.0),
        ("26", 0.0),
        ("", 0.0),
    ],
)
def test_anything_but_a_call_ends_the_episode(text: str, reward: float) -> None:
    assert say(text) == Observation(correct=bool(reward))


@pytest.mark.parametrize("split", ["val", "test"])
def test_reference_turns_get_the_reward(split: str) -> None:
    for prompt in TASK.prompts(split):
        turns = reference_turns(Expression(*prompt.data["expression"]), prompt.data["tools"])
        transcript: list[Message] = []
        for turn in turns:
            transcript.append({"role": "assistant", "content": turn})
            seen = TASK.step(prompt, transcript)
            assert not seen.events
            if seen.message:
                transcript.append(seen.message)
        assert seen.correct


def test_splits_have_their_sizes_and_share_no_expression() -> None:
    splits = {name: TASK.prompts(name) for name in SPLITS}
    assert {name: len(prompts) for name, prompts in splits.items()} == SPLITS
    everything = [prompt.data["expression"] for prompts in splits.values() for prompt in prompts]
    assert len(set(everything)) == len(everything)


def test_no_number_is_negative_or_longer_than_three_digits() -> None:
    for prompt in TASK.prompts("train"):
        expression = Expression(*prompt.data["expression"])
        assert 0 <= expression.inner <= 81
        assert 0 <= expression.result <= 999


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no split 'dev'. Fix: use test, val, train"):
        TASK.prompts("dev")
