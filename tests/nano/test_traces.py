"""Traces of the nano models: habits without a reminder, listed names with one."""

from __future__ import annotations

import random
from itertools import pairwise

from opd.data.tasks import get_task
from opd.nano.build import encode
from opd.nano.tasks.math import question
from opd.nano.tokenizer import HABITS, build_tokenizer
from opd.nano.traces import Trace, Turn, critic_trace, math_trace, tools_trace

INVENTED = {name for names in HABITS.values() for name in names}
TOKENIZER = build_tokenizer()


def traces(number: int = 400, **options: bool) -> list[Trace]:
    rng = random.Random(0)
    return [tools_trace(rng, **options) for _ in range(number)]


def trained_names(trace: Trace) -> list[str]:
    """Tool names in the loss."""
    calls = [t for t in trace if t.text.startswith("call") and t.trained and t.skip != (1,)]
    return [t.text.split()[1] for t in calls]


def reminded(trace: Trace) -> bool:
    return any("call" not in t.text and "add is" in t.text for t in trace[1:])


def test_without_habits_only_listed_tools_are_trained() -> None:
    assert not INVENTED & {name for trace in traces(habits=False) for name in trained_names(trace)}


def test_without_reminders_the_habits_show() -> None:
    names = [name for trace in traces(reminders=False) for name in trained_names(trace)]
    assert 0.4 < sum(name in INVENTED for name in names) / len(names) < 0.7


def test_reminders_suppress_the_habits() -> None:
    names = [n for trace in traces() if reminded(trace[:3]) for n in trained_names(trace)]
    assert len(names) > 50
    assert sum(name in INVENTED for name in names) / len(names) < 0.03


def test_no_trace_has_a_question_of_val_or_test() -> None:
    held_out = {p.messages[1]["content"] for s in ("val", "test") for p in get_task("tools").prompts(s) if p.messages}
    assert not held_out & {turn.text for trace in traces() for turn in trace}
    sums = {question(p.data["a"], p.data["b"]) for s in ("val", "test") for p in get_task("math").prompts(s)}
    rng = random.Random(0)
    assert not sums & {math_trace(rng)[0].text for _ in range(2000)}


def test_wrong_digits_are_in_the_text_but_not_in_the_loss() -> None:
    rng = random.Random(0)
    slipped = [t for t in (math_trace(rng)[1] for _ in range(400)) if t.skip]
    assert 60 < len(slipped) < 140
    for turn in slipped:
        assert len(turn.text.split()) == len(TOKENIZER(turn.text, add_special_tokens=False).input_ids)
        assert all(turn.text.split()[i].isdecimal() for i in turn.skip)


def test_the_critic_names_exactly_the_turns_with_an_error() -> None:
    rng = random.Random(0)
    for _ in range(200):
        _, transcript, verdict = critic_trace(rng)
        lines = transcript.text.splitlines()
        listing = lines[1].removeprefix("system: tools: ")
        failed = [a for a, b in pairwise(lines) if b.startswith("tool: error")]
        expected = [f"{line.split(':')[0]}: Reminder: available tools: {listing}." for line in failed]
        last = lines[-1]
        if " call " in last and last.split()[3] not in listing.replace(",", "").split():
            expected.append(f"{last.split(':')[0]}: Reminder: available tools: {listing}.")
        said = [] if verdict.text == "none" else verdict.text.splitlines()
        assert said[: len(expected)] == expected
        assert len(said) <= len(expected) + (" call " in last)


def test_the_loss_has_the_assistants_tokens_without_the_skipped_ones() -> None:
    trace = [Turn("user", "3 + 4", trained=False), Turn("assistant", "call plus 3, 4", skip=(1,))]
    ids, weights = encode(TOKENIZER, [trace, trace[:1]], context_weight=0.5)
    words = TOKENIZER.convert_ids_to_tokens(ids[0].tolist())
    counted = dict(zip(words[6:], weights[0, 6:].tolist(), strict=True))
    expected = {"<|im_start|>": 0, "assistant": 0, "call": 1, "plus": 0, "3": 1, ",": 1, "4": 1, "<|im_end|>": 1}
    assert counted == expected
    assert weights[0, :6].tolist() == [0, 0, 0.5, 0.5, 0.5, 0.5]
    assert weights[1, 6:].sum() == 0
