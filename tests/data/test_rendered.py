"""All prompts of a run are rendered, checked and counted before the first step."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer

import opd
from opd.api import load
from opd.axes.base import Objects
from opd.axes.views.hint import HintView
from opd.axes.views.privileged import PrivilegedView
from opd.config.read import read
from opd.config.run import PromptsConfig
from opd.data.prompts import load_prompts
from opd.data.rows import from_rows
from opd.errors import DataError, ModelError
from opd.language.lengths import Rendered
from opd.models.chat import Chat
from opd.models.language import LanguageModel
from opd.types import Hint, Prompt, Rollout, Span
from support.chat_templates import make_chat_tokenizer
from support.models import make_model
from support.small_runs import small_run
from support.tokenizers import SHARED_DATA, make_tokenizer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def rendered(rows: list[Any], chat: Chat) -> Rendered:
    return Rendered.of(from_rows(rows, key="prompts", chat=chat.has_template)[0], chat, key="prompts")


@pytest.mark.parametrize("name", ["qwen 3", "llama 3.1", "mistral with tools", "gemma without system"])
def test_lengths_are_those_of_the_prompts_as_the_model_reads_them(name: str) -> None:
    chat = Chat(make_chat_tokenizer(name))
    rows = ["a" * n for n in range(1, 30)] + ["🙂é漢" * n for n in range(1, 9)]
    prompts = rendered([{"prompt": text} for text in rows], chat)
    lengths = [len(chat.prompt_ids(prompt)) for prompt in prompts.prompts]
    assert prompts.lengths == lengths
    for most in (0, 40, 60, 80, 1000):
        assert prompts.longer_than(most) == {i: n for i, n in enumerate(lengths) if n > most}


def test_plain_texts_are_counted_with_the_tokens_around_them() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHARED_DATA / "stories260k") if SHARED_DATA.exists() else make_tokenizer()
    tokenizer.chat_template = None
    chat = Chat(tokenizer)
    prompts = rendered([{"prompt": "a b c " * n} for n in range(1, 9)], chat)
    assert prompts.lengths == [len(chat.prompt_ids(prompt)) for prompt in prompts.prompts]


def test_longer_prompts_are_left_out_and_counted() -> None:
    notes: list[str] = []
    chat = Chat(make_chat_tokenizer("chatml"))
    prompts = rendered([{"prompt": "a" * n, "id": n} for n in (10, 20, 900, 30, 800)], chat)
    kept = prompts.within(100, notes.append)
    assert [p.id for p in kept.prompts] == ["10", "20", "30"]
    assert kept.lengths == [len(chat.prompt_ids(p)) for p in kept.prompts]
    assert notes == ["prompts: 2 of 5 prompts left out, of more than 100 tokens"]
    with pytest.raises(DataError, match=r"prompts.max_tokens=3 leaves no prompt \(the shortest has \d+ tokens\). Fix"):
        prompts.within(3, notes.append)


def test_the_longest_in_tokens_is_found_among_longer_ones_in_characters() -> None:
    chat = Chat(make_chat_tokenizer("chatml"))
    prompts = rendered([{"prompt": "a" * 300}] * 40 + [{"prompt": "🙂" * 140, "id": "rare"}], chat)
    with pytest.raises(DataError, match=r"prompts: prompt 'rare' has \d+ tokens, and with n=8 exceeds the model's 512"):
        prompts.check_room(8, 512, setting="n")
    prompts.within(504, lambda note: None).check_room(8, 512, setting="n")


@pytest.mark.slow
def test_many_prompts_are_counted_in_seconds() -> None:
    chat = Chat(make_chat_tokenizer("qwen 3"))
    rows = [{"prompt": f"What is {n} plus {n}? Answer in one word."} for n in range(20_000)]
    started = time.process_time()
    rendered(rows, chat).check_room(100, 1000, setting="n")
    assert time.process_time() - started < 15


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("minimind", {"messages": [user("a"), {"role": "critic", "content": "lost"}]}, r"message 2 \(critic\)"),
        ("qwen 3", {"messages": [{"role": "speaker", "content": "s"}, user("Hi")]}, r"message 1 \(speaker\)"),
        (
            "qwen 3",
            {"messages": [user("Hi"), {"role": "developer", "content": "be brief"}]},
            r"message 2 \(developer\)",
        ),
        ("chatml", {"prompt": "a", "tools": [{"name": "get_weather"}]}, "tool 'get_weather'"),
        (
            "gemma without system",
            {
                "messages": [
                    user("a"),
                    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "get_rain"}}]},
                    user("b"),
                ]
            },
            "the call of 'get_rain' in message 2",
        ),
    ],
)
def test_a_part_of_a_prompt_that_a_template_leaves_out(name: str, row: dict[str, Any], words: str) -> None:
    if name == "minimind" and not SHARED_DATA.exists():
        pytest.skip("needs the shared data beside the checkout")
    found = AutoTokenizer.from_pretrained(SHARED_DATA / "minimind-tokenizer") if name == "minimind" else None
    with pytest.raises(DataError, match=f"prompts: prompt '1': {words} does not reach the model.*Fix: "):
        rendered([row], Chat(found or make_chat_tokenizer(name)))


def test_texts_that_a_template_trims_quotes_or_takes_thoughts_from_are_there() -> None:
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfour"}
    rendered([{"messages": [user(" a\n"), thought, user("b")]}], Chat(make_chat_tokenizer("qwen 3")))
    quoted = {"role": "tool", "content": 'two\nlines "quoted"'}
    rendered([{"messages": [user("  a "), quoted]}], Chat(make_chat_tokenizer("llama 3.1")))


def test_a_refused_prompt_is_named_with_advice_that_fits() -> None:
    rows = [user("a"), {"role": "system", "content": "s"}]
    given = [{"messages": [user("a")]}, {"messages": rows[::-1], "id": "x"}]
    with pytest.raises(ModelError, match=r"prompt 'x': .*System role not supported.*into the first user message$"):
        rendered(given, Chat(make_chat_tokenizer("gemma without system")))


def test_half_of_a_surrogate_pair_in_a_prompt_object() -> None:
    with pytest.raises(DataError, match="prompts: prompt 'x' has half of a surrogate pair"):
        Rendered.of([Prompt("x", (user("a\ud83d"),))], Chat(make_chat_tokenizer("chatml")), key="prompts")


def loaded(out: Path, given: Any, held_out: Any = None, **keys: Any) -> Any:
    """A loaded run of a tiny student and teacher."""
    tree = small_run(out, **keys) | ({"eval": {"prompts": {"path": "x"}}} if held_out else {})
    objects = Objects(student=make_model(0), teacher=make_model(1), prompts=given, eval_prompts=held_out)
    return load(read(tree), objects)


def test_held_out_prompts_that_are_training_prompts_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"{letter} b"} for letter in "abcdefgh"]
    held_out = [{"prompt": "a b", "id": "new"}, {"prompt": "j k"}]
    run = loaded(tmp_path / "run", rows, held_out)
    text = (
        "eval.prompts: 1 of 2 held-out prompts are training prompts too, so they show nothing about new prompts. Fix: "
        "name another split or file"
    )
    assert run.context.notes == [f"WARNING {text}"]
    assert f"WARNING   {text}" in list(run.findings())
    assert loaded(tmp_path / "run", rows, held_out[1:]).context.notes == []


def test_settings_of_the_run_file_hold_for_prompts_given_from_python(tmp_path: Path) -> None:
    rows = [{"question": "a b c " * n, "answer": ["x", "y"]} for n in range(1, 13)]
    prompts = {"columns": {"prompt": "question"}, "limit": 10, "max_tokens": 30}
    run = loaded(tmp_path / "run", rows, prompts={"path": "x", **prompts})
    assert [p.answers for p in run.context.prompts] == [("x", "y")] * 8
    assert run.context.notes == ["prompts: 2 of 10 prompts left out, of more than 30 tokens"]


def thinking_model(seed: int) -> LanguageModel:
    """A tiny model with a template that has ``enable_thinking`` and ``tools``."""
    tokenizer = make_chat_tokenizer("qwen 3")
    made = make_model(seed, vocab=len(tokenizer), eos=(tokenizer.eos_token_id,))
    return LanguageModel(made.model, tokenizer, made.source)


def test_template_arguments_and_tools_hold_in_training_evaluation_and_report(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    rows = [{"prompt": f"a {n}", "tools": [tool]} for n in range(8)]
    held_out = [{"prompt": "b", "tools": [tool]}, {"prompt": "c", "chat_template_kwargs": {"enable_thinking": True}}]
    for name, given in (("train", rows), ("test", held_out)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    tree = small_run(
        tmp_path / "run",
        prompts={"path": str(tmp_path / "train.jsonl"), "chat_template_kwargs": {"enable_thinking": False}},
        eval={"prompts": str(tmp_path / "test.jsonl"), "every": 1, "diagnostics": 0},
        optimizer={"lr": 1e-3, "steps": 1},
    )
    opd.train(tree, student=thinking_model(0), teacher=thinking_model(1))
    lines = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().split("\n")[:-1]]
    texts = {line["prompt_text"] for line in lines if "prompt_text" in line}
    thought = "<think>\n\n</think>\n\n"
    for text in texts:
        assert text.endswith("assistant\n" if "user\nc<" in text else f"assistant\n{thought}")
        assert ('"name": "f"' in text) == ("user\nc<" not in text)
    assert {"user\nc<" in text for text in texts} == {True, False}


def test_a_template_argument_that_the_template_does_not_have(tmp_path: Path) -> None:
    settings = {"path": "x", "chat_template_kwargs": {"enable_thinkin": False}}
    with pytest.raises(DataError, match=r"prompts.chat_template_kwargs: the chat template of .* has no 'enable_think"):
        loaded(tmp_path / "run", [{"prompt": "a"}], prompts=settings)


def test_a_context_that_is_filled_from_the_prompts_columns(tmp_path: Path) -> None:
    teacher = {"weights": "frozen", "view": {"type": "context", "text": "a {letter} {1: 2}"}}

    def notes(rows: list[dict[str, str]]) -> list[str]:
        objects = Objects(student=make_model(0), prompts=rows)
        run: Any = load(read(small_run(tmp_path / "run", teacher=teacher)), objects)
        return [note for note in run.context.notes if "teacher.view" in note]

    rows = [{"prompt": f"{letter} b", "letter": letter} for letter in "abcdefgh"]
    assert notes(rows) == []
    with pytest.raises(
        DataError, match="the context is filled from 'letter', and prompt '9' has no such column. Fix: "
    ):
        notes([*rows, {"prompt": "i j"}])
    text = "teacher.view: {letter} is a column of no prompt, and stays in the context as it is"
    assert notes([{"prompt": row["prompt"]} for row in rows]) == [text]


def test_views_keep_tools_and_template_arguments() -> None:
    chat = Chat(make_chat_tokenizer("qwen 3"))
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    messages = [user("x"), {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "7"}]
    row = {"messages": messages, "tools": [tool], "answer": "c", "chat_template_kwargs": {"enable_thinking": False}}
    prompt = from_rows([row], key="prompts", chat=True)[0][0]
    end = chat.insert_text_ids("d") + chat.turn_end_ids
    own = (True,) * len(end), (0.0,) * len(end), (Span(0, len(end)),)
    rollout = Rollout(prompt, chat.prompt_ids(prompt), end, *own, "stop")
    asked = PrivilegedView(chat, template="{prompt}, and {answer}").segments([rollout])[0].context_ids
    read_by_student = chat.decode(rollout.prompt_ids, skip_special_tokens=False)
    assert chat.decode(asked, skip_special_tokens=False) == read_by_student.replace("user\nx<", "user\nx, and c<")
    hinted = HintView(Says(Hint(Span(0, len(end)), "h")), chat).segments([rollout])[0].context_ids
    opening = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    hint = "<|im_start|>user\nh<|im_end|>\n"
    assert chat.decode(hinted, skip_special_tokens=False) == f"{read_by_student.removesuffix(opening)}{hint}{opening}"


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the shared data beside the checkout")
def test_published_tool_calling_prompts_as_they_are() -> None:
    config = PromptsConfig(
        path=str(SHARED_DATA / "bfcl" / "BFCL_v4_simple_python.json"),
        columns={"messages": "question", "tools": "function"},
    )
    prompts, _ = load_prompts(config, key="prompts", has_template=True)
    chat = Chat(AutoTokenizer.from_pretrained(SHARED_DATA / "minimind-tokenizer"))
    assert len(prompts) == 400
    assert prompts[0].id == "simple_python_0"
    read_by_model = Rendered.of(prompts, chat, key="prompts")
    for prompt, length in zip(prompts[::50], read_by_model.lengths[::50], strict=True):
        ids = chat.tokenizer.apply_chat_template(
            list(prompt.messages or ()), tools=list(prompt.tools or ()), add_generation_prompt=True, return_dict=False
        )
        assert chat.prompt_ids(prompt) == tuple(ids)
        assert length == len(ids)


def test_a_model_is_measured_on_a_file_with_other_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\na b,c\nb c,d\nc d,e\n" + "a " * 200 + ",b\n")
    notes: list[str] = []
    settings = ["columns.prompt=question", "max_tokens=100"]
    metrics = opd.evaluate(
        make_model(0), str(tmp_path / "a.csv"), settings=settings, max_new_tokens=4, note=notes.append
    )
    assert {"accuracy", "length"} <= metrics.keys()
    assert notes == ["eval.prompts: 1 of 4 prompts left out, of more than 100 tokens"]


class Says:
    """An author with one hint."""

    def __init__(self, hint: Hint) -> None:
        self.hint = hint

    def hints(self, rollouts: Sequence[Rollout]) -> list[list[Hint]]:
        return [[self.hint] for _ in rollouts]


def test_a_dataset_a_generator_and_a_dataset_with_splits_given_from_python(tmp_path: Path) -> None:
    rows = [{"prompt": f"{letter} b"} for letter in "abcdefgh"]
    table = datasets.Dataset.from_list(rows)
    parts = datasets.DatasetDict({"train": table, "test": table.select(range(2))})
    for given, held_out in ((table, parts), ((row for row in rows), parts), (parts, iter(rows[:2]))):
        objects = Objects(student=make_model(0), teacher=make_model(1), prompts=given, eval_prompts=held_out)
        objects.check()
        run: Any = load(read(small_run(tmp_path / "run", eval={"prompts": {"path": "x"}})), objects)
        assert (len(run.context.prompts), len(run.context.held_out)) == (8, 2)
