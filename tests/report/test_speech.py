"""The parts of a rollout: thoughts, calls and messages, as each chat format writes them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from opd.report.speech import parts

CALL = '{"name": "add", "arguments": {"a": 1, "b": "}"}}'


def row(*pieces: str | tuple[str, ...], special: str = r"<\|.*?\|>|</?s>|\[/?[A-Z_]+\]") -> dict[str, Any]:
    """A recorded line: strings are the student's turns, tuples are inserted; every letter outside a mark is a token."""
    texts: list[str] = []
    marks: list[int] = []
    turns: list[list[int]] = []
    for piece in pieces:
        whole = piece if isinstance(piece, str) else "".join(piece)
        start = len(texts)
        for part in re.split(f"({special})", whole):
            if re.fullmatch(special, part):
                marks.append(len(texts))
                texts.append(part)
            else:
                texts += part
        if isinstance(piece, str):
            turns.append([start, len(texts)])
    return {"text": texts, "special": marks, "turns": turns}


def said(line: dict[str, Any]) -> list[tuple[str, str]]:
    found = parts(line)
    covered = [p for _, start, stop in found for p in range(start, stop)]
    assert covered == list(range(len(line["text"])))
    return [(kind, "".join(line["text"][start:stop])) for kind, start, stop in found]


def test_a_plain_answer_is_one_text() -> None:
    assert said(row("The answer is 4.</s>")) == [("text", "The answer is 4.</s>")]


def test_a_thought_is_apart_even_if_the_prompt_opened_it_or_nothing_closed_it() -> None:
    assert said(row("<think>a b</think>c")) == [("thought", "<think>a b</think>"), ("text", "c")]
    assert said(row("a b</think>\nc")) == [("thought", "a b</think>"), ("text", "\nc")]
    assert said(row("<think>a")) == [("thought", "<think>a")]


CHATML = ("<|im_end|>", "\n", "<|im_start|>", "{role}\n", "{shown}", "<|im_end|>", "\n", "<|im_start|>", "assistant\n")
FORMATS = {
    "chatml": ("<tool_call>\n" + CALL + "\n</tool_call>", [t.format(role="tool", shown="3") for t in CHATML]),
    "qwen": (
        "<tool_call>\n" + CALL + "\n</tool_call>",
        [t.format(role="user", shown="<tool_response>\n3\n</tool_response>") for t in CHATML],
    ),
    "llama": (
        "<|python_tag|>" + CALL,
        ["<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n3<|eot_id|>", "<|start_header_id|>assistant"],
    ),
    "mistral": ("[TOOL_CALLS][" + CALL + "]", ["</s>[TOOL_RESULTS] 3[/TOOL_RESULTS]"]),
    "glm": (CALL, ["<|observation|>3<|assistant|>"]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_call_and_result_are_apart_in_every_format(name: str) -> None:
    call, after = FORMATS[name]
    found = said(row(f"I add. {call}", tuple(after), "It is 3."))
    assert found[0] == ("text", "I add. ")
    assert found[1][0] == "call"
    assert json.loads(re.sub(r"^\[TOOL_CALLS\]\[|\]$|<\|?/?[a-z_]+\|?>", "", found[1][1])) == json.loads(CALL)
    assert [text.strip() for kind, text in found if kind == "tool"] == ["3"]
    assert found[-1] == ("text", "It is 3.")
    assert {kind for kind, _ in found} == {"text", "call", "tool", "frame"}


def test_several_calls_are_several_parts() -> None:
    one, two = CALL, CALL.replace("add", "mul")
    marked = said(row(f"<tool_call>{one}</tool_call>\n<tool_call>{two}</tool_call>"))
    assert [kind for kind, _ in marked] == ["call", "text", "call"]
    assert [kind for kind, _ in said(row(f"{one}\n{two}"))] == ["call", "text", "call"]


def test_a_turn_without_marks_that_a_tool_answered_is_a_call() -> None:
    found = said(row("call add 1<|im_end|>", ("<|im_start|>tool 5<|im_end|><|im_start|>assistant",), "5"))
    assert found[:2] == [("call", "call add 1"), ("text", "<|im_end|>")]
    assert ("tool", "5") in found


def test_an_inserted_text_without_a_role_stays_as_it_is() -> None:
    assert ("inserted", "hm") in said(row("a", ("<|x|>", "hm"), "b"))


def test_a_users_further_message_has_its_role() -> None:
    found = said(row("a", tuple(t.format(role="user", shown="Are you sure?") for t in CHATML), "b"))
    assert ("user", "Are you sure?") in found


def test_tokens_of_several_letters_belong_to_the_part_that_they_begin_in() -> None:
    line = {"text": ["<th", "ink>a", "</think>b", " c"], "special": [], "turns": [[0, 4]]}
    assert parts(line) == [("thought", 0, 3), ("text", 3, 4)]
