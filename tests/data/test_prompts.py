"""Prompts from files and datasets, and the sentence for a broken row."""

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest

from opd.config.read import read
from opd.config.run import PromptsConfig
from opd.data.answers import AnswerTask
from opd.data.prompts import load_prompts
from opd.data.rows import from_rows
from opd.errors import ConfigError, DataError
from opd.types import Prompt
from support.tokenizers import SHARED_DATA


def write(path: Path, text: str) -> PromptsConfig:
    path.write_text(text)
    return PromptsConfig(path=str(path))


def test_jsonl_with_prompts_messages_answers_and_extras(tmp_path: Path) -> None:
    config = write(
        tmp_path / "a.jsonl",
        '{"prompt": "2 + 2", "answer": 4, "domain": "sums", "id": "x", "level": 3}\n\n'
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}\n',
    )
    prompts, task = load_prompts(config, key="prompts", has_template=True)
    assert prompts[0].messages == ({"role": "user", "content": "2 + 2"},)
    assert (prompts[0].id, prompts[0].answer, prompts[0].domain) == ("x", "4", "sums")
    assert prompts[0].data == {"level": 3}
    assert [m["role"] for m in prompts[1].messages or ()] == ["system", "user"]
    assert isinstance(task, AnswerTask)


def test_plain_text_without_a_template_and_no_task_without_answers(tmp_path: Path) -> None:
    config = write(tmp_path / "a.jsonl", '{"prompt": "Once upon"}\n')
    prompts, task = load_prompts(config, key="prompts", has_template=False)
    assert prompts[0].text == "Once upon"
    assert task is None


def test_a_dataset_from_disk(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"prompt": ["a", "b", "c"], "answer": ["1", "2", "3"]})
    datasets.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "d"))
    config = PromptsConfig(dataset=str(tmp_path / "d"), split="test", limit=2)
    prompts, _ = load_prompts(config, key="prompts", has_template=False)
    assert [p.text for p in prompts] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', "prompts: line 2 of .* is not JSON"),
        ('["a"]\n', "line 1 of .* is not an object"),
        ('{"question": "a"}\n', "row 1 has to have either 'prompt' or 'messages', and has the columns 'question'"),
        ('{"prompt": "a", "messages": []}\n', "has both"),
        ('{"prompt": "  "}\n', "is not a string with text"),
        ('{"prompt": 3}\n', "is not a string with text"),
        ('{"messages": []}\n', "is not a list of messages"),
        ('{"messages": [{"role": "user"}]}\n', "message 1 .user. has no text in .content."),
        (
            '{"messages": [{"role": "assistant", "content": "x"}]}\n',
            "nothing to answer before the assistant.s last turn",
        ),
        ("\n", "has no rows"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_prompts(write(tmp_path / "a.jsonl", text), key="prompts", has_template=True)


def test_missing_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        load_prompts(PromptsConfig(path=str(tmp_path / "no.jsonl")), key="prompts", has_template=True)
    with pytest.raises(DataError, match="eval.prompts: there is no folder"):
        load_prompts(PromptsConfig(dataset=str(tmp_path / "no")), key="eval.prompts", has_template=True)
    with pytest.raises(ConfigError, match="no split 'tset'"):
        load_prompts(PromptsConfig(task="math", split="tset"), key="prompts", has_template=True)
    with pytest.raises(DataError, match="there are no prompts"):
        from_rows([], key="prompts", chat=False)


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the shared data beside the checkout")
def test_real_grade_school_problems_check_their_own_solutions() -> None:
    import json

    lines = (SHARED_DATA / "gsm8k" / "test.jsonl").read_text().splitlines()
    rows = [{"prompt": r["question"], "answer": r["answer"]} for r in map(json.loads, lines)]
    prompts, task = from_rows(rows, key="prompts", chat=True)
    assert task is not None
    for prompt in prompts:
        assert task.step(prompt, [{"role": "assistant", "content": prompt.answer or ""}]).correct is True
        assert task.step(prompt, [{"role": "assistant", "content": "the answer is 0.123"}]).correct is False


def test_a_mix_takes_of_each_source_in_turn_and_each_keeps_its_checker(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"prompt": "2 + 2", "answer": 4}\n{"prompt": "say hi"}\n')
    write(tmp_path / "b.jsonl", '{"prompt": "1 + 1", "answer": 2, "domain": "own"}\n')
    sources = [
        {"path": str(tmp_path / "a.jsonl"), "domain": "sums"},
        {"task": "tools", "limit": 3},
        str(tmp_path / "b.jsonl"),
    ]
    config = PromptsConfig.model_validate(sources)
    prompts, task = load_prompts(config, key="prompts", has_template=True)
    assert [p.domain for p in prompts] == ["sums", "tools", "own", "sums", "tools", "tools"]
    assert len({p.id for p in prompts}) == 6
    assert task is not None
    assert task.step(prompts[0], [{"role": "assistant", "content": "it is 4"}]).correct is True
    assert task.step(prompts[2], [{"role": "assistant", "content": "it is 4"}]).correct is False
    assert task.step(prompts[3], [{"role": "assistant", "content": "hi"}]).correct is None
    call = {"role": "assistant", "content": (prompts[1].turns or ("",))[0]}
    assert (task.step(prompts[1], [call]).message or {}).get("role") == "tool"


def test_a_mix_has_no_keys_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"prompts: limit does not apply to a mix"):
        read("opd", {"prompts": {"mix": [{"task": "math"}], "limit": 3}})
    with pytest.raises(ConfigError, match=r"prompts.mix.0: exactly one of .* and mix is needed \(got only split\)"):
        read("opd", {"prompts": [{"split": "train"}]})


def test_turns_of_a_solution(tmp_path: Path) -> None:
    config = write(tmp_path / "a.jsonl", '{"prompt": "x", "turns": ["call f", "done"]}\n')
    assert load_prompts(config, key="prompts", has_template=True)[0][0].turns == ("call f", "done")
    config = write(tmp_path / "b.jsonl", '{"prompt": "x", "turns": "done"}\n')
    with pytest.raises(DataError, match="row 1: 'turns' is not a list of strings"):
        load_prompts(config, key="prompts", has_template=True)


def test_rows_without_an_id_or_with_that_of_another_are_prompts_of_their_own() -> None:
    rows = [{"prompt": "a", "id": "x"}, {"prompt": "b"}, {"prompt": "c", "id": "x"}, {"prompt": "d", "id": 2}]
    rows += [{"prompt": "e", "id": None}, {"prompt": "f", "id": "x"}, {"prompt": "g", "id": "x#2"}]
    notes: list[str] = []
    config = PromptsConfig(path="given")
    prompts, _ = load_prompts(config, rows, key="prompts", has_template=True, note=notes.append)
    assert [p.id for p in prompts] == ["x", "2", "x#3", "2#2", "5", "x#4", "x#2"]
    assert notes == ["prompts: 3 prompts repeat an id and get ids of their own, such as 'x#3'"]
    objects = [Prompt("x", text="a"), Prompt("x", text="b")]
    assert [p.id for p in load_prompts(config, objects, key="prompts", has_template=True)[0]] == ["x", "x#2"]


def test_a_row_keeps_tools_fields_of_messages_template_arguments_and_every_answer(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm", "name": None},
        {"role": "tool", "content": "1", "tool_call_id": "x"},
    ]
    row = {"prompt": messages, "tools": json.dumps([tool]), "answer": ["42", 43], "chat_template_kwargs": {"a": 1}}
    config = write(tmp_path / "a.jsonl", json.dumps(row))
    config = config.model_copy(update={"chat_template_kwargs": {"a": 2, "b": False}})
    (prompt,), _ = load_prompts(config, key="prompts", has_template=True, kwargs={"b": True, "c": 0})
    assert prompt.tools == (tool,)
    assert prompt.messages == (
        messages[0],
        {"role": "assistant", "tool_calls": [call], "reasoning_content": "hm"},
        messages[2],
    )
    assert (prompt.answer, prompt.answers) == ("42", ("42", "43"))
    assert prompt.chat_template_kwargs == {"a": 1, "b": False, "c": 0}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "of type 'image_url'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "a part without text"),
        ({"messages": [{"role": "", "content": "a"}]}, "is not a list of messages"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": "f()"}]}, "'tool_calls' is not a list of calls"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"function": None}]}]},
            "'tool_calls' is not a list of calls",
        ),
        ({"prompt": "a", "tools": [{"type": "function"}]}, "'tools' is not a list of JSON schemas"),
        ({"prompt": "a", "tools": "[f"}, "'tools' is no JSON"),
        ({"prompt": "a", "chat_template_kwargs": [1]}, "'chat_template_kwargs' is no mapping"),
        ({"prompt": "a", "answer": "b\ud83d"}, "has half of a surrogate pair"),
        ({"prompt": "a", "domain": ["x"]}, "'domain' is no text"),
        ({"messages": [{"role": "user", "content": " "}]}, r"message 1 \(user\) is empty"),
        ({"prompt": "a", "answer": [["x"]]}, "'answer' is no text, number or list"),
        ({"prompt": "a", "answer": {"x": 1}}, "'answer' is no text, number or list"),
        ({"prompt": "a", "answer": float("nan")}, "'answer' is no text, number or list"),
    ],
)
def test_broken_rows(row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=f"prompts: row 1.*{words}.*Fix: "):
        from_rows([row], key="prompts", chat=True)


@pytest.mark.parametrize(
    "answer", [np.int64(5), np.float32(5), Decimal(5), Fraction(5), 5, "5", ["5", ""], [" ", np.int8(5)]]
)
def test_numbers_of_every_kind_are_answers(answer: Any) -> None:
    (prompt,), task = from_rows([{"prompt": "a", "answer": answer, "id": ""}], key="prompts", chat=True)
    assert task
    assert [float(one) for one in prompt.answers] == [5]
    assert prompt.id == "1"


@pytest.mark.parametrize("answer", ["", " ", [], [""], None])
def test_an_empty_answer_is_none(answer: Any) -> None:
    (prompt,), task = from_rows([{"prompt": "a", "answer": answer}], key="prompts", chat=True)
    assert (prompt.answers, task) == ((), None)


ASKED = ({"role": "user", "content": "a"},)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"text": "a", "messages": ASKED}, "a Prompt has either messages or text, and this one has both"),
        ({}, "a Prompt has either messages or text, and this one has neither"),
        ({"text": " "}, r"the text of a Prompt is not a string with text \(' '\)"),
        ({"messages": ("a",)}, "'messages' is not a list of messages"),
        ({"messages": ({"content": "a"},)}, "'messages' is not a list of messages"),
        ({"messages": ({"role": "user", "content": None},)}, r"message 1 \(user\) has no text"),
        ({"messages": (*ASKED, {"role": "assistant", "content": "b"})}, "its messages end with the assistant"),
        ({"text": "a", "id": 5}, "id of a Prompt is 5, which is no string"),
        ({"text": "a", "domain": None}, "domain of a Prompt is None, which is no string"),
        ({"text": "a", "answer": 5}, "answer of a Prompt is 5, which is no string"),
        ({"text": "a", "other_answers": (5,)}, r"other_answers\[0\] of a Prompt is 5"),
        ({"text": "a", "data": None}, "data of a Prompt is no mapping"),
        ({"messages": ASKED, "chat_template_kwargs": None}, "chat_template_kwargs of a Prompt is no mapping"),
        ({"messages": ASKED, "tools": {"name": "f"}}, "'tools' is not a list of JSON schemas"),
        ({"text": "\ud800"}, "has half of a surrogate pair"),
    ],
)
def test_prompt_objects_are_held_to_what_rows_are(given: dict[str, Any], words: str) -> None:
    wrong = Prompt(**{"id": "x", **given})
    config = PromptsConfig(path="given")
    with pytest.raises(DataError, match=f"^prompts: row 2.*{words}.*Fix: "):
        load_prompts(config, [Prompt("y", text="a"), wrong], key="prompts", has_template=True)
    task = SimpleNamespace(prompts=lambda split: [Prompt("y", text="a"), wrong])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opd.data.prompts.get_task", lambda name, key: task)
        with pytest.raises(DataError, match=f"^prompts.task: prompt 2.*{words}.*Fix: "):
            load_prompts(PromptsConfig(task="math"), key="prompts", has_template=True)


def test_a_task_gives_prompt_objects_and_rows_may_stand_beside_them() -> None:
    task = SimpleNamespace(prompts=lambda split: [{"prompt": "a"}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opd.data.prompts.get_task", lambda name, key: task)
        with pytest.raises(
            DataError, match="^prompts.task: prompt 1 is {'prompt': 'a'}, which is no prompt. Fix: give"
        ):
            load_prompts(PromptsConfig(task="math"), key="prompts", has_template=True)
    given = [Prompt("y", text="a", other_answers=("b",)), {"prompt": "b"}]
    prompts, checker = load_prompts(PromptsConfig(path="given"), given, key="prompts", has_template=True)
    assert prompts[0] is given[0]
    assert [p.id for p in prompts] == ["y", "2"]
    assert checker


def test_template_arguments_that_are_no_arguments_of_the_template() -> None:
    with pytest.raises(ConfigError, match=r"prompts.chat_template_kwargs: tools is set by opd. Fix: leave it out"):
        read("opd", {"prompts.chat_template_kwargs": {"tools": []}})
    with pytest.raises(ConfigError, match=r"prompts.chat_template_kwargs needs rollouts of text"):
        read("diffusion-opd", {"prompts.chat_template_kwargs": {"enable_thinking": False}})
