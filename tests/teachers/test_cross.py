"""A teacher with another tokenizer, on the nano models and on a real pair: what it reads, and what it says of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from opd.axes.views.plain import PlainView
from opd.data.tasks import get_task
from opd.engines.hf import HFEngine
from opd.losses.cross import Matched
from opd.losses.objectives import CrossTokenizer, per_token_losses
from opd.models.chat import Chat
from opd.models.forward import align, read, student_readings
from opd.models.language import LanguageModel, stop_ids
from opd.models.loading import load
from opd.rollouts.references import ReferenceAnswers
from opd.rollouts.sampler import Sampler
from opd.signals import CrossSignal
from opd.teachers.alignment import TokenTexts, match
from opd.teachers.cross import CrossTeacher
from opd.teachers.local import LocalTeacher
from opd.types import Prompt, Rollout, Task
from support.chat_templates import make_chat_tokenizer
from support.models import make_model
from support.tokenizers import SHARED_DATA, make_byte_tokenizer


def roll_out(student: LanguageModel, prompts: Sequence[Prompt], task: Task | None, turns: int = 1) -> list[Rollout]:
    engine = HFEngine(student)
    return Sampler(
        engine, Chat(student.tokenizer), task, stop_ids=stop_ids(student), max_new_tokens=64, max_turns=turns
    ).rollout(prompts, 0)


def score(student: LanguageModel, teacher: LanguageModel, rollouts: Sequence[Rollout]) -> CrossSignal:
    return CrossTeacher(student.tokenizer, teacher).score(rollouts, PlainView().segments(rollouts))


def matched(student: LanguageModel, teacher: LanguageModel, *, opening: bool) -> Matched:
    ours, theirs = match(TokenTexts(student.tokenizer), TokenTexts(teacher.tokenizer), opening=opening)
    return Matched(torch.tensor(ours), torch.tensor(theirs), 1.0, 1.0)


def byte_model() -> LanguageModel:
    """A random model that reads single bytes."""
    tokenizer = make_byte_tokenizer(["a"], 0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    return LanguageModel(Qwen3ForCausalLM(config).eval(), tokenizer, "bytes")


@pytest.fixture(scope="module")
def student() -> LanguageModel:
    return load("nano/math-base", key="student")


@pytest.fixture(scope="module")
def teacher() -> LanguageModel:
    return load("nano/math-teacher-bpe", key="teacher.model")


@pytest.fixture(scope="module")
def rollouts(student: LanguageModel) -> list[Rollout]:
    task = get_task("math")
    return roll_out(student, task.prompts("test")[:8], task)


def text_logprob(model: LanguageModel, context: tuple[int, ...], ids: tuple[int, ...]) -> float:
    """log P of some tokens behind a context, from whole logits."""
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([context + ids])).logits[0].double()
    logprobs = logits.log_softmax(-1)[len(context) - 1 : -1]
    return float(logprobs.gather(1, torch.tensor(ids)[:, None]).sum())


def test_every_token_but_the_special_ones_lies_in_a_group(
    student: LanguageModel, teacher: LanguageModel, rollouts: list[Rollout]
) -> None:
    signal = score(student, teacher, rollouts)
    special = set(student.tokenizer.all_special_ids)
    wanted = [(r, p, i) for r, x in enumerate(rollouts) for p, i in enumerate(x.completion_ids) if i not in special]
    got = zip(signal.rollout_T.tolist(), signal.position_T.tolist(), signal.token_T.tolist(), strict=True)
    assert list(got) == wanted
    assert (signal.group_T.diff() >= 0).all()
    assert int(signal.opens_T.sum()) == len(rollouts)


def test_the_groups_together_have_the_teachers_probability_of_the_text(
    student: LanguageModel, teacher: LanguageModel, rollouts: list[Rollout]
) -> None:
    chat = Chat(teacher.tokenizer)
    for rollout in rollouts:
        ids = chat.insert_text_ids(Chat(student.tokenizer).decode(rollout.completion_ids))
        wanted = text_logprob(teacher, chat.prompt_ids(rollout.prompt), ids)
        signal = score(student, teacher, [rollout])
        first_T = signal.group_T.diff(prepend=torch.tensor([-1])) != 0
        starts = first_tokens(teacher, student, rollout, ids)
        logprobs_GV = (signal.teacher_hidden_TD[first_T] @ signal.head_VD.T).double().log_softmax(-1)
        assert len(starts) == len(logprobs_GV)
        got = logprobs_GV.gather(1, torch.tensor(starts)[:, None]).sum() + signal.teacher_rest_T[first_T].sum()
        assert float(got) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def first_tokens(teacher: LanguageModel, student: LanguageModel, rollout: Rollout, ids: tuple[int, ...]) -> list[int]:
    """The teacher's first token of each of the student's words; words are what spaces separate here."""
    names = teacher.tokenizer.convert_ids_to_tokens(ids)
    return [i for n, (i, name) in enumerate(zip(ids, names, strict=True)) if n == 0 or name.startswith("Ġ")]


def test_with_its_own_tokenizer_it_says_what_any_teacher_says(student: LanguageModel, rollouts: list[Rollout]) -> None:
    other = load("nano/math-teacher", key="teacher.model")
    signal = score(student, other, rollouts)
    plain = LocalTeacher(other).score(rollouts, PlainView().segments(rollouts))
    special = torch.tensor(student.tokenizer.all_special_ids)
    plain = plain.take(~torch.isin(plain.token_T, special))
    assert (signal.size_T == 1).all()
    assert torch.equal(signal.position_T, plain.position_T)
    torch.testing.assert_close(signal.teacher_hidden_TD, plain.hidden_TD, rtol=1e-4, atol=1e-4)
    assert not signal.teacher_rest_T.any()


def test_a_later_turn_is_read_behind_the_teachers_own_rendering(teacher: LanguageModel) -> None:
    student = load("nano/tools-base", key="student")
    task = get_task("tools")
    rollout = next(r for r in roll_out(student, task.prompts("test")[:16], task, turns=4) if len(r.turns) > 1)
    turn = rollout.turns[-1]
    messages = (*(rollout.prompt.messages or ()), *rollout.transcript[: -1 if rollout.finish == "stop" else None])
    while messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    signal = score(student, teacher, [rollout])
    signal = signal.take(signal.position_T >= turn.start)
    chat = Chat(teacher.tokenizer)
    context = chat.prompt_ids(dataclasses.replace(rollout.prompt, messages=messages))
    with torch.no_grad():
        hidden = teacher.hidden(torch.tensor([context]), torch.ones(1, len(context), dtype=torch.int64))[0, -1]
    torch.testing.assert_close(signal.teacher_hidden_TD[0], hidden, rtol=1e-3, atol=1e-3)
    assert signal.opens_T[0]


def test_a_plain_text_is_continued() -> None:
    student, teacher = make_model(template=False), byte_model()
    prompts = [Prompt(id="1", text="a b c"), Prompt(id="2", text="d e")]
    rollouts = roll_out(student, prompts, None)
    signal = score(student, teacher, rollouts)
    assert len(signal) > 0
    assert not signal.opens_T.any()
    text = TokenTexts(student.tokenizer).decode(rollouts[0].prompt_ids + rollouts[0].completion_ids)
    context, ids = (tuple(teacher.tokenizer(t)["input_ids"]) for t in ("a b c", text.removeprefix("a b c")))
    first_T = (signal.group_T.diff(prepend=torch.tensor([-1])) != 0) & (signal.rollout_T == 0)
    with torch.no_grad():
        states = teacher.model.model(input_ids=torch.tensor([context + ids])).last_hidden_state[0]
    torch.testing.assert_close(signal.teacher_hidden_TD[first_T][0], states[len(context) - 1], rtol=1e-4, atol=1e-4)


def test_what_the_teacher_cannot_hold_gets_no_signal(student: LanguageModel, rollouts: list[Rollout]) -> None:
    short = byte_model()
    short.tokenizer.chat_template = student.tokenizer.chat_template
    whole = score(student, short, rollouts)
    short.model.config.max_position_embeddings = 60
    cut = score(student, short, rollouts)
    assert 0 < len(cut) < len(whole)
    first = whole.take(whole.rollout_T == 0)
    kept = int((cut.rollout_T == 0).sum())
    torch.testing.assert_close(cut.teacher_hidden_TD[:kept], first.teacher_hidden_TD[:kept], rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_same_in_micro_batches_and_counts_whole_groups_only(rollouts: list[Rollout]) -> None:
    student, teacher = load("nano/math-base", key="student"), load("nano/math-teacher-bpe", key="teacher.model")
    # Turned around, the student's words come in several tokens.
    texts = roll_out(teacher, [r.prompt for r in rollouts], get_task("math"))
    signal = score(teacher, student, texts)
    assert int(signal.size_T.max()) > 1
    objective = CrossTokenizer(
        opening=matched(teacher, student, opening=True), inside=matched(teacher, student, opening=False)
    )
    where, states = read(teacher, student_readings(texts))
    weight_T = torch.rand(len(signal))

    def loss(rows: torch.Tensor) -> float:
        part = signal.take(rows)
        row_T = align(texts, where, part)
        with torch.no_grad():
            return float(objective(states.take(row_T), part, weight_T[rows]))

    everything = torch.ones(len(signal), dtype=torch.bool)
    halves = signal.rollout_T < 4, signal.rollout_T >= 4
    assert loss(everything) == pytest.approx(sum(map(loss, halves)), rel=1e-5)
    first_T = signal.group_T.diff(prepend=torch.tensor([-1])) != 0
    assert loss(first_T) == pytest.approx(loss(signal.size_T == 1), rel=1e-5)
    each_T = per_token_losses(objective, states.take(align(texts, where, signal)), signal)
    assert float(each_T @ weight_T) == pytest.approx(loss(everything), rel=1e-5)
    assert not each_T[~first_T].any()


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="no shared/data with real models beside this checkout")
@pytest.mark.parametrize(("ours", "theirs"), [("stories260k", "babyllama-char"), ("babyllama-char", "stories260k")])
def test_real_tokenizers_agree_on_what_a_real_model_writes(ours: str, theirs: str) -> None:
    student, teacher = (load(str(SHARED_DATA / name), key="student") for name in (ours, theirs))
    rollouts = roll_out(student, [Prompt(id=str(i), text="Once upon a time there was") for i in range(8)], None)
    signal = score(student, teacher, rollouts)
    special = set(student.tokenizer.all_special_ids)
    num_plain = sum(i not in special for r in rollouts for i in r.completion_ids)
    # A last word may be cut in the middle, and a character may be missing from one vocabulary.
    assert len(signal) > 0.95 * num_plain
    assert float(signal.size_T.float().mean()) < 8
    assert signal.teacher_rest_T.isfinite().all()


@pytest.mark.parametrize("name", ["a newline before the end", "an end of two tokens", "an end in plain text", "gemma"])
def test_the_whole_turn_end_of_the_students_template_is_left_out(name: str) -> None:
    """Also the parts of it that are ordinary tokens: the teacher's template ends turns in its own way."""
    chat, prompt = Chat(make_chat_tokenizer(name)), Prompt(id="a", messages=({"role": "user", "content": "3 + 4?"},))
    prompt = dataclasses.replace(prompt, answer="It is 7.")
    rollouts = ReferenceAnswers(chat, None, max_length=None).rollout([prompt], 0)
    reader = make_model(0, vocab=300)
    reader = dataclasses.replace(reader, tokenizer=make_chat_tokenizer("llama 3"))
    signal = CrossTeacher(chat.tokenizer, reader).score(rollouts, PlainView().segments(rollouts))
    assert chat.decode(signal.token_T.tolist(), skip_special_tokens=False) == "It is 7."
