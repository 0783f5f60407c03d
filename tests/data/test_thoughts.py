"""What of a reasoning model's turn is thought and what is answer."""

import pytest

from opd.data.answers import answers_match
from opd.data.thoughts import blank_thoughts, without_thoughts


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("4", "4"),
        ("<think>two and two</think>\n\n4", "4"),
        ("hm, two and two\n</think>\n\n4", "4"),
        ("hm</think><think>again</think>4", "4"),
        ("<think>a</think>4<think>b</think> it is", "4 it is"),
        ("<think>never closed: 4", ""),
        ("[THINK]two and two[/THINK]4", "4"),
        ("<|channel|>analysis<|message|>two<|end|><|start|>assistant<|channel|>final<|message|>4", "4"),
        ("a < b and c > d", "a < b and c > d"),
    ],
)
def test_thoughts_are_cut_out_and_blanked(text: str, answer: str) -> None:
    assert without_thoughts(text) == answer
    blank = blank_thoughts(text)
    assert len(blank) == len(text)
    assert "".join(blank.split()) == "".join(answer.split())
    assert all(now in (was, " ") for was, now in zip(text, blank, strict=True))


def test_the_answer_checker_reads_past_special_tokens() -> None:
    assert answers_match("<|channel|>analysis<|message|>Rome?<|channel|>final<|message|>Paris", "Paris")
    assert answers_match("<|python_tag|>Paris<|eom_id|>", "paris")
